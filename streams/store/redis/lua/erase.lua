-- Record when users were erased; of each the latest time counts.
--
-- KEYS[1]   a hash: milliseconds since 1970 by digest of a user
-- ARGV      a digest and a time for each
for at = 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[at])
  if not known or tonumber(known) < tonumber(ARGV[at + 1]) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
return 1
