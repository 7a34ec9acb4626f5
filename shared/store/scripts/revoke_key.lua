-- Forget a key.
-- KEYS: list that it belongs to, keys of the service account, digest by id
-- ARGV: key id, beginning of the places' keys, prefixes of key records, of times of use, of former values
local digest = redis.call('GET', KEYS[3])
if digest then retire_key(digest, ARGV[1], '0', ARGV[3], ARGV[4], ARGV[5]) end
redis.call('DEL', KEYS[3])
redis.call('SREM', KEYS[2], ARGV[1])
leave_list(KEYS[1], ARGV[1], ARGV[2])
return 1
