-- Pin an adapter, or let go of it, and tell the replicas.
-- KEYS: pinned adapters, adapter, adapters of its base, change stream.
-- ARGV: name, 1 to pin or 0, most that may be pinned of a base or -1 for any number, change.
-- Returns 1 done, 0 it was so before, -1 so many are pinned already, -2 the adapter is gone.
local is_pinned = redis.call('SISMEMBER', KEYS[1], ARGV[1])
if is_pinned == tonumber(ARGV[2]) then return 0 end
if ARGV[2] == '1' then
  if redis.call('EXISTS', KEYS[2]) == 0 then return -2 end
  local most = tonumber(ARGV[3])
  if most >= 0 and redis.call('SINTERCARD', 2, KEYS[1], KEYS[3]) >= most then return -1 end
  redis.call('SADD', KEYS[1], ARGV[1])
else
  redis.call('SREM', KEYS[1], ARGV[1])
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'change', ARGV[4])
return 1
