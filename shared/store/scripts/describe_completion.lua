-- Replace a completion's metadata, if it is there and belongs to the project.
-- KEYS: completion hash. ARGV: project, metadata
-- Returns 1 done, 0 there is no such completion.
if redis.call('HGET', KEYS[1], 'project') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'metadata', ARGV[2])
return 1
