-- Replace an alias if it is still the one that was read, and put the change in front of its history.
-- KEYS: alias, history.  ARGV: record as read, new record, entry, most entries.
-- Returns 1 done, 0 somebody wrote first.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
return 1
