-- Delete a stored answer that belongs to the project, give its bytes back, and take it off a list if one is given.
-- KEYS: hash, stored answers of the project, bytes of the project, list or nothing
-- ARGV: project, id, beginning of the list's places' keys
-- Returns 1 deleted, 0 there is no such object.
if redis.call('HGET', KEYS[1], 'project') ~= ARGV[1] then return 0 end
uncount_answer(KEYS[1], KEYS[2], KEYS[3], ARGV[2])
redis.call('DEL', KEYS[1])
if KEYS[4] then leave_list(KEYS[4], ARGV[2], ARGV[3]) end
return 1
