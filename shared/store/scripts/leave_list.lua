-- Take ids off a list, and delete keys with them.
-- KEYS: list, keys to delete ...  ARGV: beginning of the places' keys, ids ...
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
for i = 2, #ARGV do leave_list(KEYS[1], ARGV[i], ARGV[1]) end
return 1
