-- Read a key and its project in one step, and note the use, at most once a minute.
-- KEYS: key record, time of its last use, the same value as a former one, check of the secret
-- ARGV: prefix of projects, project that the client names or "", check of the caller's secret, prefixes of key records,
--       of times of use, of digests by id
-- Returns {'ok', key's record, its project's or "", 1 if the named project exists}, {'unknown'}, {'former', key id} for
-- a value that was revoked or replaced, {'mismatch'} if the digest was made with another secret than the database's.
local check = redis.call('GET', KEYS[4])
if check and check ~= ARGV[3] then return {'mismatch'} end
local now = tonumber(redis.call('TIME')[1])
local raw, use = redis.call('GET', KEYS[1]), KEYS[2]
local former = redis.call('GET', KEYS[3])
if not raw and not former then return {'unknown'} end
if former then -- also where a record of the same value came back with a backup
  local id, valid_until = string.match(former, '^(%S+) (%d+)$')
  local digest = redis.call('GET', ARGV[6] .. id)
  raw = digest and redis.call('GET', ARGV[4] .. digest)
  local all_until = raw and cjson.decode(raw)['formers_until'] or 0
  if now >= math.min(tonumber(valid_until), all_until) then return {'former', id} end
  use = ARGV[5] .. digest
end
local key = cjson.decode(raw)
local alive = type(key['expires_at']) ~= 'number' or key['expires_at'] > now
-- pcall: a database that takes no changes at the moment still knows its keys
if alive and now - tonumber(redis.call('GET', use) or 0) >= 60 then redis.pcall('SET', use, now) end
local named = 0
if ARGV[2] ~= '' then named = redis.call('EXISTS', ARGV[1] .. ARGV[2]) end
return {'ok', raw, redis.call('GET', ARGV[1] .. key['project']) or '', named}
