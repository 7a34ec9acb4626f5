-- Replace a job's record if nobody else did meanwhile, and append its events, in one step.
-- KEYS: job hash, event stream, lease, set of active jobs
-- ARGV: expected version, new record, lease token or "", job id, "1" if the new state is terminal, events ...
-- Returns 1 done, 0 somebody wrote first, -1 no such job, -2 the lease belongs to somebody else.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if ARGV[3] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[3] then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[5] == '1' then redis.call('SREM', KEYS[4], ARGV[4]) else redis.call('SADD', KEYS[4], ARGV[4]) end
for i = 6, #ARGV do redis.call('XADD', KEYS[2], '*', 'event', ARGV[i]) end
return 1
