-- Note what an alias's gate saw of a model, unless the alias was deleted meanwhile, or a newer run was seen. The run with
-- which the model had passed the same rows stays what it was, unless the new one names another.
-- KEYS: alias, gate runs
-- ARGV: the alias's uid, model, run, 1 if another verdict over the same run gives way, then models to forget
-- Returns 1 noted, 0 left as it is.
local raw = redis.call('GET', KEYS[1])
if not raw or cjson.decode(raw)['uid'] ~= ARGV[1] then return 0 end
local seen, before = cjson.decode(ARGV[3]), redis.call('HGET', KEYS[2], ARGV[2])
before = before and cjson.decode(before)
if before and (before.at > seen.at or (before.run_id == seen.run_id and ARGV[4] ~= '1')) then return 0 end
if seen.passed_run_id == '' then
  seen.passed_run_id = before and before.asked == seen.asked and before.passed_run_id or ''
  if seen.passed_run_id == '' and seen.has_passed then seen.passed_run_id = seen.run_id end
end
redis.call('HSET', KEYS[2], ARGV[2], cjson.encode(seen))
for place = 5, #ARGV do redis.call('HDEL', KEYS[2], ARGV[place]) end
return 1
