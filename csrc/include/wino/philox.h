// Philox-4x32-10 (Salmon et al., SC 2011) and the Gumbel variate made from one of its words.
#pragma once

#include "wino/config.h"

namespace wino {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments
constexpr int kPhiloxRounds = 10;

// No Gumbel variate exceeds this: the smallest x is 2^-33, and -log(-log1p(-2^-33)) = 22.874.
constexpr float kGumbelMax = 22.9f;
// Nor is any below this: the largest x is 1 - 2^-24, and -log(-log(2^-24)) = -2.812.
constexpr float kGumbelMin = -2.82f;

struct PhiloxWords {
  uint32_t word[4];
};

WINO_HD PhiloxWords philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0, p1 = static_cast<uint64_t>(kPhiloxM1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// The words of vocabulary index v and the three beside it, in the row whose key is given.
WINO_HD PhiloxWords philox_block(uint64_t key, int64_t v) {
  return philox4x32(key, static_cast<uint32_t>(v >> 2), 0, 0, 0);
}

WINO_HD uint32_t philox_word(uint64_t key, int64_t v) {
  const PhiloxWords words = philox_block(key, v);  // chosen by value: an index would put the words in memory
  const uint32_t low = v & 1 ? words.word[1] : words.word[0], high = v & 1 ? words.word[3] : words.word[2];
  return v & 2 ? high : low;
}

// A word as a number in (0, 1).
WINO_HD float gumbel_uniform(uint32_t word) {
  return fminf((static_cast<float>(word) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
}

// x is formed in float32; the logarithms are taken in float64 so that g is right in the tail that wins.
WINO_HD float gumbel(uint32_t word) {
  return static_cast<float>(-log(-log1p(-static_cast<double>(gumbel_uniform(word)))));
}

}  // namespace wino
