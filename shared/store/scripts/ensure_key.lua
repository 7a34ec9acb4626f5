-- Make a key known that is kept outside the database, in place of the one that its folder held before. It may have been replaced once.
-- KEYS: key record, digest by id, admin keys, sequence, keys by folder, check of the secret
-- ARGV: key id, record, digest, folder or "", check of the caller's secret, prefixes of key records, of times of use, of
--       former values, of digests by id, beginning of the places' keys of admin keys
-- Returns 1 stored, 0 it is there already, -1 the database's digests were made with another secret.
if redis.call('SET', KEYS[6], ARGV[5], 'NX') == false and redis.call('GET', KEYS[6]) ~= ARGV[5] then return -1 end
local raw = redis.call('GET', KEYS[1])
local known = raw and cjson.decode(raw)['id'] or ''
local id = known ~= '' and known or ARGV[1]
if ARGV[4] ~= '' then
  local before = redis.call('HGET', KEYS[5], ARGV[4])
  if before and before ~= id then
    local digest = redis.call('GET', ARGV[9] .. before)
    if digest then retire_key(digest, before, '0', ARGV[6], ARGV[7], ARGV[8]) end
    redis.call('DEL', ARGV[9] .. before)
    leave_list(KEYS[3], before, ARGV[10])
  end
  redis.call('HSET', KEYS[5], ARGV[4], id)
end
redis.call('DEL', ARGV[8] .. ARGV[3])
if known ~= '' then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[4]), ARGV[1])
return 1
