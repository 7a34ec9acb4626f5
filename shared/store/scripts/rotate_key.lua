-- Give a key another value, if its record is still the one that was read.
-- KEYS: digest by id, record under the old value and the new one, time of use of each, the old one as a former value
-- ARGV: old digest, record as read, new digest, new record, key id, Unix time until which the old value works,
--       prefixes of key records, of times of use, of former values
-- Returns 1 done, 0 somebody wrote first.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
local used = redis.call('GET', KEYS[4])
retire_key(ARGV[1], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
redis.call('SET', KEYS[3], ARGV[4])
if used then redis.call('SET', KEYS[5], used) end
redis.call('SET', KEYS[1], ARGV[3])
return 1
