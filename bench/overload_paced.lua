-- Like overload.lua, but each connection pauses between two requests. The number of connections therefore limits the
-- request rate, however soon requests are refused.
dofile(debug.getinfo(1).source:match("^@(.*/)") .. "overload.lua")

function delay()
  return 50
end
