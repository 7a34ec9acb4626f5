-- Add a window of an alias behind those that are there, once, and note what webhooks are told of it.
-- KEYS: alias, windows, outcomes.  ARGV: the alias's uid, window, Unix time of its start, most windows, outcome or ""
-- Returns 1 added, 0 it is there, or nobody wants it.
if not is_monitored(KEYS[1], ARGV[1]) then return 0 end
local head = redis.call('LINDEX', KEYS[2], 0)
if head and cjson.decode(head)['ends_at'] > tonumber(ARGV[3]) + 0.001 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
if ARGV[5] ~= '' then redis.call('ZADD', KEYS[3], 0, ARGV[5]) end
return 1
