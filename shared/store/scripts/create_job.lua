-- Store a new job with its first events and its turn, once.
-- KEYS: job hash, event stream, jobs of the project, active jobs, active jobs of the project, sequence, turns
-- ARGV: job id, record, most active jobs of the project or -1, project, events ...
-- Returns 1 created, 0 that id is there already, -1 the project has too many active jobs.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local limit = tonumber(ARGV[3])
if limit >= 0 and redis.call('SCARD', KEYS[5]) >= limit then return -1 end
local order = redis.call('INCR', KEYS[6])
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', 1, 'turn', take_turn(KEYS[7], ARGV[4], order))
redis.call('ZADD', KEYS[3], order, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1])
for i = 5, #ARGV do redis.call('XADD', KEYS[2], '*', 'event', ARGV[i]) end
return 1
