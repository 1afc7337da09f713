// The cores of a device: one model runs at a time, in the order in which streams ask. Else two streams would compute twice
// as much as a card.
#pragma once

namespace cann_sim {

void take_cores(int device);
void release_cores(int device);

// Arranges that no model runs or begins to when the statics of libtorch end. Call it after libtorch was loaded.
void finish_models_at_exit();

}  // namespace cann_sim
