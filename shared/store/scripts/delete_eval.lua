-- Delete an eval that has no runs any more.
-- KEYS: record, runs of the eval, evals of the project, the same by their last change
-- ARGV: id, beginnings of the places' keys of both lists.  Returns 1 done, 0 there are runs.
if redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
leave_list(KEYS[3], ARGV[1], ARGV[2])
leave_list(KEYS[4], ARGV[1], ARGV[3])
return 1
