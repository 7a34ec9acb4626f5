-- Replace the outcome of a job or batch by the deliveries that tell of it, due at once.
-- KEYS: outcomes, queue of deliveries, delivery records ...  ARGV: outcome, then id and record of each delivery.
-- Returns 1 done, 0 somebody did it before.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
for i = 3, #KEYS do
  local at = 2 * (i - 2)
  redis.call('SET', KEYS[i], ARGV[at + 1])
  redis.call('ZADD', KEYS[2], 0, ARGV[at])
end
return 1
