// Cases come in on standard input and results go out on standard output, as raw arrays.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

template <typename T>
std::vector<T> read(std::int64_t size) {
  std::vector<T> values(static_cast<std::size_t>(size));
  if (std::fread(values.data(), sizeof(T), values.size(), stdin) != values.size()) {
    std::fputs("expected a whole case on standard input\n", stderr);
    std::exit(2);
  }
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}
