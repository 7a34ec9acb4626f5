-- Count one more sample of an alias's hour, unless there were enough.
-- KEYS: alias, count of the hour.  ARGV: the alias's uid, most of an hour.  Returns 1 counted, 0 no more are wanted.
if not is_monitored(KEYS[1], ARGV[1]) then return 0 end
if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[2]) then return 0 end
redis.call('INCR', KEYS[2])
redis.call('EXPIRE', KEYS[2], 7200)
return 1
