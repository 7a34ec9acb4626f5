-- Take requests that are due to the reward model that has waited longest; they are due again when the lease is over.
-- Those that nobody waits for any more are dropped.
-- KEYS: queue.  ARGV: beginning of the requests' keys, lease in seconds, most requests
-- Returns for each: record, how often it has been taken.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local taken, model = {}, nil
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local key = ARGV[1] .. id
  local wanted = redis.call('HGET', key, 'model')
  if not wanted then
    redis.call('ZREM', KEYS[1], id)
  elseif not model or wanted == model then
    model = wanted
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], id)
    taken[#taken + 1] = {redis.call('HGET', key, 'record'), redis.call('HINCRBY', key, 'takes', 1)}
    if #taken == tonumber(ARGV[3]) then break end
  end
end
return taken
