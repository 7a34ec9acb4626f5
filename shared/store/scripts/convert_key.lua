-- Move a key from its SHA-256 to its keyed digest.
-- KEYS: record and time of its last use, as they were, and as they are to be
-- ARGV: keyed digest, prefix of digests by id.  Returns 1 done, 0 somebody was faster.
local raw = redis.call('GET', KEYS[1])
if not raw then return 0 end
local id = cjson.decode(raw)['id']
redis.call('RENAME', KEYS[1], KEYS[3])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[4]) end
if type(id) == 'string' and id ~= '' then redis.call('SET', ARGV[2] .. id, ARGV[1]) end
return 1
