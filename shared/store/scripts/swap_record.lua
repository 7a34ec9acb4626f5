-- Replace a record if it still is what was read.  KEYS: record.  ARGV: as read, new.  Returns 1 done, 0 it has changed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
