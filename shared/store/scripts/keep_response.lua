-- Keep a response.
-- KEYS: response hash, stored answers of the project, bytes of the project
-- ARGV: id, seconds to keep or 0, then field, value, ...
keep_answer(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], {unpack(ARGV, 3)})
return 1
