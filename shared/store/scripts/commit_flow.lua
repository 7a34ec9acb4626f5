-- Replace a flow's record if nobody else did meanwhile. One that ends counts no more towards its project's active ones.
-- KEYS: flow hash, active flows of the project
-- ARGV: expected version, new record, lease token or "", flow id, "1" at its end
-- Returns 1 done, 0 somebody wrote first, -1 no such flow, -2 somebody else has claimed it.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if is_fenced_off(KEYS[1], ARGV[3]) then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[5] == '1' then redis.call('SREM', KEYS[2], ARGV[4]) end
return 1
