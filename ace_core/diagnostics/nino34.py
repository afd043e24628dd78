"""The Nino 3.4 index that was observed.

Sea surface temperature of the Nino 3.4 box, anomaly from the tropical average, three-month centred mean, at the first of January, April,
July and October from 1940 to January 2021, in mK; of the boundary conditions of the AMIP experiments of CMIP6 (input4MIPs, PCMDI-AMIP; Durack and Taylor), as
computed and published by Ai2 in https://github.com/ai2cm/ace (Apache-2.0), fme/ace/aggregator/inference/enso. The numbers are restated, so that
coefficients compare with fme's.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ace_core.calendar import I64, parse
from ace_core.grid import F64

FIRST_YEAR = 1940
# Four values a year, five years a row.
MILLIKELVIN = """
    1013 696 549 338 1028 903 642 733 582 403 -208 -696 -574 -308 146 -101 -23 -12 -62 -193
    -311 -425 -364 -334 -299 -91 347 197 298 136 13 -319 424 525 313 92 253 191 -107 -272
    -546 -598 -312 -288 -385 61 435 600 305 147 -197 109 152 414 301 455 396 255 -219 -295
    -202 -299 -486 -781 -527 -222 -312 -293 -114 202 564 740 990 655 393 191 393 286 -48 52
    144 226 115 133 115 156 214 -23 -7 -4 65 -106 -124 34 432 580 553 -131 -182 -202
    -124 141 923 1348 1069 577 191 101 -104 -118 211 126 -60 -73 262 326 541 251 246 483
    352 238 -302 -317 -653 -485 -184 -204 -143 174 609 1105 1108 150 -759 -1147 -1308 -648 -327 -180
    -141 -202 -673 -620 -691 -69 328 782 709 309 424 732 705 151 -166 -65 65 70 9 283
    379 195 128 38 103 -24 -96 -177 -98 143 853 1321 1791 974 -297 -474 -457 -114 -252 -491
    -852 -519 -163 -174 -376 -347 205 690 926 682 959 809 271 -495 -1204 -1366 -1474 -724 -379 -335
    -25 65 16 29 181 15 395 712 1464 976 236 -57 198 468 270 129 -32 84 361 566
    673 107 -305 -704 -732 -371 -224 -250 -282 29 1007 1537 1314 332 -1356 -1174 -1320 -734 -835 -784
    -1254 -676 -343 -575 -678 -437 -23 -184 -258 -81 486 869 693 -29 -172 -19 -188 -44 391 291
    127 29 51 -192 -665 -382 -73 337 279 -182 -367 -946 -1307 -714 -287 -417 -790 -386 154 567
    893 68 -987 -1227 -1136 -771 -415 -772 -658 -319 222 95 -426 -359 -226 -254 -367 -238 -132 151
    302 231 799 1450 1386 333 -611 -731 -563 -111 -90 -606 -615 -487 35 295 225 286 64 41
    -245 -263 -620 -1086 -918
"""


@cache
def nino34(calendar: str) -> tuple[I64, F64]:
    """times [Q] seconds, index [Q] in K."""
    values = np.array(MILLIKELVIN.split(), np.float64)
    stamps = [f"{FIRST_YEAR + i // 4}-{1 + 3 * (i % 4):02d}-01" for i in range(len(values))]
    times = np.array([parse(stamp, calendar, "Nino 3.4 index") for stamp in stamps], np.int64)
    return times, values / 1000.0
