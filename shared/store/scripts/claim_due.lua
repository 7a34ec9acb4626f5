-- Take the members that are due out of a set ordered by time, by making them due again when the lease is over.
-- KEYS: sorted set.  ARGV: lease in seconds, most members.  Returns the members, the longest due first.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now + tonumber(ARGV[1]), member) end
return due
