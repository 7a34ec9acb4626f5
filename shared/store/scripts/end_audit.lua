-- Take a change off those that are pending, and enter it into the audit log.
-- KEYS: log, pending changes.  ARGV: token or "", record or "" for none, mark or "", entries that are kept.
-- With a mark it is entered only if it is pending, and the mark stays in its place, so that its end, should it still
-- come, does not enter it again. Records are JSON objects, marks are not.  Returns 1 entered, 0 not.
local pending = redis.call('HGET', KEYS[2], ARGV[1])
local is_marked = pending and string.sub(pending, 1, 1) ~= '{'
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[2], ARGV[1])
elseif pending and not is_marked then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
else
  return 0
end
if ARGV[2] == '' or is_marked then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'entry', ARGV[2])
return 1
