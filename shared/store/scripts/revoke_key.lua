-- Forget a key.
-- KEYS: list that it belongs to, keys of the service account, keys to delete ...
-- ARGV: key id, beginning of the places' keys
for i = 3, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('SREM', KEYS[2], ARGV[1])
leave_list(KEYS[1], ARGV[1], ARGV[2])
return 1
