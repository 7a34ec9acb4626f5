-- Run several commands in one step, if the writer is the job's owner.
-- KEYS: job hash.  ARGV: lease token, the commands as a JSON array of arrays of strings.
-- Returns their answers, or -2 if somebody else has claimed the job.
if is_fenced_off(KEYS[1], ARGV[1]) then return -2 end
local answers = {}
for i, command in ipairs(cjson.decode(ARGV[2])) do answers[i] = redis.call(unpack(command)) end
return answers
