// Counts of the accesses to chosen memory, by a program that is compiled with -fsanitize=thread.
#pragma once

#include <cstddef>

struct Traffic {
  unsigned long long loaded, stored;  // bytes
};

// Count accesses to these bytes from now on.
void watch(const void* begin, std::size_t bytes);

// What was counted; afterwards nothing is watched.
Traffic take();
