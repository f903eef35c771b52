// A part of the toolkit's headers that programs look for; here mma.h has all.
#pragma once
