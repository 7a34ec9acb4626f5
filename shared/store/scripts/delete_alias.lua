-- Forget an alias if it is still the one that was read, with its history and its shadow's answers.
-- KEYS: alias, aliases of the project, history, shadow pairs
-- ARGV: record as read, name, beginning of the places' keys of the project's aliases
-- Returns 1 done, 0 somebody wrote first.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4])
leave_list(KEYS[2], ARGV[2], ARGV[3])
return 1
