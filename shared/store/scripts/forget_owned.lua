-- Delete a hash that belongs to the project, and its entry in an index if one is given.
-- KEYS: hash, index or nothing. ARGV: project, id
-- Returns 1 deleted, 0 there is no such object.
if redis.call('HGET', KEYS[1], 'project') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if KEYS[2] then redis.call('ZREM', KEYS[2], ARGV[2]) end
return 1
