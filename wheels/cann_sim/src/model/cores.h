// The cores of a device: one model runs at a time, in the order in which streams ask. Else two streams would compute twice
// as much as a card.
#pragma once

namespace cann_sim {

void take_cores(int device);
void release_cores(int device);

// Whether the process ends: no model may begin to run any more.
bool is_ending();

// Arranges that none runs when the statics of libtorch end. Call it after libtorch was loaded.
void finish_models_at_exit();

}  // namespace cann_sim
