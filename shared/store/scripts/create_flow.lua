-- Store a new flow, once.
-- KEYS: flow hash, flows of the project, active flows, those of the project, sequence
-- ARGV: id, record, most active flows of the project
-- Returns 1 created, 0 that id is there already, -5 the project has too many active flows.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[3]) then return -5 end
local order = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', 1)
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
return 1
