-- Write an adapter's record and tell the replicas. A name stays bound to its bytes for ever. It counts towards its
-- project's storage from when it is listed.
-- KEYS: adapter, adapters of the base, change stream, next id, models of the project, job hash, bytes of the project
-- ARGV: name, sha256, record up to "int_id":, record after it, change, "1" if listed, lease token or "", size in bytes
-- Returns the adapter's number, 0 if the name belongs to other bytes, or -2 if somebody else has claimed the job.
if is_fenced_off(KEYS[6], ARGV[7]) then return -2 end
local current = redis.call('GET', KEYS[1])
local number
if current then
  local known = cjson.decode(current)
  if known['sha256'] ~= ARGV[2] then return 0 end
  number = known['int_id']
else
  number = redis.call('INCR', KEYS[4])
end
redis.call('SET', KEYS[1], ARGV[3] .. string.format('%d', number) .. ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
if ARGV[6] == '1' and redis.call('SADD', KEYS[5], ARGV[1]) == 1 then redis.call('INCRBY', KEYS[7], ARGV[8]) end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'change', ARGV[5])
return number
