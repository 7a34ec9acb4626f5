-- Replace a record if it is still the one that was read.
-- KEYS: record.  ARGV: record as read, new record.  Returns 1 done, 0 somebody wrote first, -1 it is gone.
local current = redis.call('GET', KEYS[1])
if not current then return -1 end
if current ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
