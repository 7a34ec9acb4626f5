-- Append a checkpoint if the writer still holds the job's lease and its step was not recorded before.
-- KEYS: job hash, checkpoint list, lease.  ARGV: lease token or "", checkpoint, its step number.
-- Returns 1 done, 0 that step is there already, -1 no such job, -2 the lease belongs to somebody else.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if ARGV[1] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[1] then return -2 end
for _, text in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  if cjson.decode(text)['step_number'] == tonumber(ARGV[3]) then return 0 end
end
redis.call('RPUSH', KEYS[2], ARGV[2])
return 1
