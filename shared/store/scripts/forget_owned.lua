-- Delete a hash that belongs to the project, and its entry in an index if one is given.
-- KEYS: hash, index or nothing. ARGV: project, id, beginning of the index's places' keys
-- Returns 1 deleted, 0 there is no such object.
if redis.call('HGET', KEYS[1], 'project') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if KEYS[2] then leave_list(KEYS[2], ARGV[2], ARGV[3]) end
return 1
