-- Queue a request to a reward model, unless too many wait; those that nobody waits for any more do not count.
-- KEYS: queue, request.  ARGV: id, record, model, lifetime in ms, most requests, beginning of the requests' keys
-- Returns 1 queued, 0 full.
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if redis.call('EXISTS', ARGV[6] .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
  end
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) then return 0 end
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[2], 'record', ARGV[2], 'model', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000, ARGV[1])
return 1
