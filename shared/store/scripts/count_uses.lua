-- Count uses of adapters; once in a while all counts fade, and those near zero go.
-- KEYS: uses by name, names of the adapters that exist. ARGV: now, seconds between fadings, then name, count, …
-- The time of the last fading is the score of a member that no adapter's name can be.
local faded = '\0faded'
local last = tonumber(redis.call('ZSCORE', KEYS[1], faded) or 0)
if last == 0 then
  redis.call('ZADD', KEYS[1], -ARGV[1], faded)
elseif ARGV[1] + last >= tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[1], faded)
  local times = math.floor((ARGV[1] + last) / tonumber(ARGV[2]))
  redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', 0.9 ^ times)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', 0.5)
  redis.call('ZADD', KEYS[1], -ARGV[1], faded)
end
for place = 3, #ARGV, 2 do
  if redis.call('SISMEMBER', KEYS[2], ARGV[place]) == 1 then
    redis.call('ZINCRBY', KEYS[1], ARGV[place + 1], ARGV[place])
  end
end
return 1
