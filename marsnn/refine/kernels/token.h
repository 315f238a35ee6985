// All that a layer does to a few tokens but its mixing: `maps`, `feed_forward` and `down`.
#pragma once
#include "feed_forward.h"
#include "maps.h"
