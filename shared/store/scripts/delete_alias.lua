-- Forget an alias if it is still the one that was read, with everything that belongs to it.
-- KEYS: alias, aliases of the project, history, tended aliases, then what else belongs to it
-- ARGV: record as read, name, beginning of the places' keys of the project's aliases, its name among the tended ones
-- Returns 1 done, 0 somebody wrote first.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[3], unpack(KEYS, 5))
redis.call('SREM', KEYS[4], ARGV[4])
leave_list(KEYS[2], ARGV[2], ARGV[3])
return 1
