-- Undo the take of requests to a reward model, unless they are answered: only those count that end with their lease.
-- KEYS: queue.  ARGV: beginning of the requests' keys, seconds from now until they are due, ids...
local time = redis.call('TIME')
local due = time[1] + time[2] / 1000000 + ARGV[2]
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', due, ARGV[i])
    local key = ARGV[1] .. ARGV[i]
    if tonumber(redis.call('HGET', key, 'takes') or 0) > 0 then redis.call('HINCRBY', key, 'takes', -1) end
  end
end
return 1
