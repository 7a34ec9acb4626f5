-- Write a record with a short life, and when it was heard, by this server's clock: those of the hosts differ.
-- Members that were silent for long and have no record any more are forgotten.
-- KEYS: record, index. ARGV: record, its life in ms, member, beginning of the records' keys, seconds of silence.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[3])
-- The clock was put back: nobody has been heard in the future.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.17g', now), '+inf')) do
  redis.call('ZADD', KEYS[2], now, member)
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[5]))) do
  if redis.call('EXISTS', ARGV[4] .. member) == 0 then redis.call('ZREM', KEYS[2], member) end
end
