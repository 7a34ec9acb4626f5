-- Stands before every script.
-- Take an id off a list that clients page through, and keep its place for an hour: it may be somebody's `after`.
-- `places` is the beginning of the places' keys.
local function leave_list(list, id, places)
  local place = redis.call('ZSCORE', list, id)
  if not place then return end
  redis.call('SET', places .. id, place, 'EX', 3600)
  redis.call('ZREM', list, id)
end
-- Whether a write to a job was done before: its caller repeats it, with the same nonce, when no answer came.
local function is_done(job, nonce)
  return nonce ~= '' and string.find(redis.call('HGET', job, 'nonces') or '', nonce, 1, true) ~= nil
end
-- Note that it is done; the last eight are known, as many as writers there may be at once, and more.
local function note_done(job, nonce)
  if nonce == '' then return end
  local known = (redis.call('HGET', job, 'nonces') or '') .. ' ' .. nonce
  redis.call('HSET', job, 'nonces', string.sub(known, -8 * (#nonce + 1)))
end
-- Whether a writer with this token has been replaced: whoever claims a lease becomes the owner, and stays it when the
-- lease runs out, until another claims it. "" is a writer that needs no lease.
local function is_fenced_off(owned, token)
  return token ~= '' and redis.call('HGET', owned, 'owner') ~= token
end
-- Whether a key is there that its holder has to renew within `ms`. Where the clock was put back it would outlast its
-- holder by as much; then it gets `ms` from now. (Some room, since others may hold theirs for longer.)
local function is_held(key, ms)
  local left = redis.call('PTTL', key)
  if left > 4 * ms then redis.call('PEXPIRE', key, ms) end
  return left ~= -2
end
-- Take the value of an API key out of use; for 30 days it is still known as what it was.
-- `valid_until` is the Unix time until which it works all the same, '0' for not at all. The others are the beginnings of
-- the keys of records, times of use and former values.
local function retire_key(digest, id, valid_until, records, uses, formers)
  redis.call('DEL', records .. digest, uses .. digest)
  redis.call('SET', formers .. digest, id .. ' ' .. valid_until, 'EX', 2592000)
end
-- Give a new job its place among those of its priority: its project's next turn, and its place within that turn.
-- A turn is one more than that of the project's job before, or than that of the job begun last if that is more; so every
-- project that waits has one job in a turn, however many it has submitted. `turns` has `now`, the turn of the job begun
-- last, `last {project}`, and `at {turn}`, how many jobs have that turn. A place is turn * 1000 + place within the turn.
-- `order` is the job's in the order of creation: jobs of before there were turns have their order for a turn.
local function take_turn(turns, project, order)
  redis.call('HSETNX', turns, 'now', order)
  local now = tonumber(redis.call('HGET', turns, 'now'))
  local turn = math.max(now, tonumber(redis.call('HGET', turns, 'last ' .. project) or 0)) + 1
  redis.call('HSET', turns, 'last ' .. project, string.format('%.0f', turn))
  local within = redis.call('HINCRBY', turns, string.format('at %.0f', turn), 1)
  return string.format('%.0f', turn * 1000 + math.min(within, 999))
end
-- Note that the job of a place is begun, and forget what says nothing any more.
local function begin_turn(turns, place)
  local turn = math.floor(place / 1000)
  if turn <= tonumber(redis.call('HGET', turns, 'now') or 0) then return end
  redis.call('HSET', turns, 'now', string.format('%.0f', turn))
  local fields = redis.call('HGETALL', turns)
  for i = 1, #fields, 2 do
    local number = string.sub(fields[i], 1, 3) == 'at ' and string.sub(fields[i], 4) or fields[i + 1]
    if fields[i] ~= 'now' and tonumber(number) <= turn then redis.call('HDEL', turns, fields[i]) end
  end
end
-- Stop counting those of a project's stored answers that have expired, 1,000 at a time; whether more may be due.
-- `answers` has "{id} {bytes}" by the Unix time at which they expire, 0 for never; `used` is the project's bytes.
local function drop_expired(answers, used)
  local sum = 0
  local expired = redis.call('ZRANGEBYSCORE', answers, '(0', redis.call('TIME')[1], 'LIMIT', 0, 1000)
  for _, member in ipairs(expired) do
    sum = sum + tonumber(string.match(member, ' (%d+)$'))
    redis.call('ZREM', answers, member)
  end
  if redis.call('EXISTS', used) == 1 then redis.call('DECRBY', used, string.format('%.0f', sum)) end
  return #expired == 1000
end
-- Count so many bytes under an id until a Unix time, 0 for ever.
local function count_bytes(answers, used, id, size, expires_at)
  redis.call('ZADD', answers, expires_at, id .. ' ' .. size)
  if redis.call('EXISTS', used) == 1 then redis.call('INCRBY', used, size) end
end
-- Stop counting them, if they count; `size` is false where they never did.
local function uncount_bytes(answers, used, id, size)
  if not size or redis.call('ZREM', answers, id .. ' ' .. size) == 0 then return end
  if redis.call('EXISTS', used) == 1 then redis.call('DECRBY', used, size) end
end
-- Stop counting an answer.
local function uncount_answer(hash, answers, used, id)
  uncount_bytes(answers, used, id, redis.call('HGET', hash, 'counted'))
end
-- Store an answer in place of what its id had before, for so many seconds or, with '0', for ever, and count its bytes.
-- `fields` are field, value, ...
local function keep_answer(hash, answers, used, id, keep_s, fields)
  drop_expired(answers, used)
  uncount_answer(hash, answers, used, id)
  local size, expires_at = 0, 0
  for i = 2, #fields, 2 do size = size + #fields[i] end
  size = string.format('%.0f', size)
  redis.call('DEL', hash)
  redis.call('HSET', hash, 'counted', size, unpack(fields))
  if tonumber(keep_s) > 0 then
    redis.call('EXPIRE', hash, keep_s)
    expires_at = redis.call('TIME')[1] + keep_s
  end
  count_bytes(answers, used, id, size, expires_at)
end
-- Let go of a file; its bytes are given back if it is deleted and nobody else holds it.
local function release_file(file, holders, used, id, size)
  local was_last = redis.call('SREM', holders, id) == 1 and redis.call('EXISTS', holders) == 0
  if was_last and redis.call('EXISTS', file) == 0 and redis.call('EXISTS', used) == 1 then
    redis.call('DECRBY', used, size)
  end
end
-- Whether an alias is still the one of this uid, and has a monitor.
local function is_monitored(alias, uid)
  local raw = redis.call('GET', alias)
  if not raw then return false end
  local record = cjson.decode(raw)
  return record['uid'] == uid and type(record['monitor']) == 'table'
end
