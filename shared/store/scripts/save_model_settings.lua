-- Write a model's settings if they are still of the revision that was read, and the model is still there.
-- KEYS: settings, adapter.  ARGV: revision as read, new revision, record, allowed keys or '' for all.
-- Returns 1 done, 0 somebody wrote first, -1 the model is gone.
if redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
if (redis.call('HGET', KEYS[1], 'revision') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'record', ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], 'allowed_keys')
else
  redis.call('HSET', KEYS[1], 'allowed_keys', ARGV[4])
end
return 1
