-- Append a checkpoint if the writer is the job's owner and its step was not recorded before.
-- KEYS: job hash, checkpoint list.  ARGV: lease token or "", checkpoint, its step number.
-- Returns 1 done, 0 that step is there already, -1 no such job, -2 somebody else has claimed it.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_fenced_off(KEYS[1], ARGV[1]) then return -2 end
for _, text in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  if cjson.decode(text)['step_number'] == tonumber(ARGV[3]) then return 0 end
end
redis.call('RPUSH', KEYS[2], ARGV[2])
return 1
