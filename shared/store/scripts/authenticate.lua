-- Read a key and its project in one step, and note the use, at most once a minute.
-- KEYS: key record, time of its last use
-- ARGV: prefix of project keys, project that the client names or ""
-- Returns nothing for an unknown key, else its record, its project's or "", and 1 if the named project exists.
local raw = redis.call('GET', KEYS[1])
if not raw then return false end
local key = cjson.decode(raw)
local now = tonumber(redis.call('TIME')[1])
local alive = type(key['expires_at']) ~= 'number' or key['expires_at'] > now
-- pcall: a database that takes no changes at the moment still knows its keys
if alive and now - tonumber(redis.call('GET', KEYS[2]) or 0) >= 60 then redis.pcall('SET', KEYS[2], now) end
local named = 0
if ARGV[2] ~= '' then named = redis.call('EXISTS', ARGV[1] .. ARGV[2]) end
return {raw, redis.call('GET', ARGV[1] .. key['project']) or '', named}
