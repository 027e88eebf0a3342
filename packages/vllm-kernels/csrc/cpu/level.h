// Levels: sets of instructions that the kernels are compiled for. A machine serves every level up to its own.
#pragma once

// In order; the numbers are part of the interface with Python.
enum Level : int { kNone = -1, kAvx2 = 0, kAvx512 = 1, kAvx512Bf16 = 2, kAmx = 3 };

// The best level of this machine: what the processor has and the operating system saves. Asks Linux for the AMX tiles.
Level detect_level();
