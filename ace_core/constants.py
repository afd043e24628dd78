"""Physical constants. SI units. The values are those of the ACE family (``fme.core.constants``), so budgets agree."""

GRAVITY = 9.80665  # m s-2, standard gravity (CGPM 1901)
LATENT_HEAT_OF_VAPORIZATION = 2.5e6  # J kg-1, at 0 degC as in GFS
LATENT_HEAT_OF_FREEZING = 3.34e5  # J kg-1
SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE = 1004.6  # J kg-1 K-1
RDGAS = 287.05  # J kg-1 K-1, dry air
RVGAS = 461.5  # J kg-1 K-1, water vapour
SPECIFIC_HEAT_OF_DRY_AIR_CONST_VOLUME = SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE - RDGAS  # J kg-1 K-1
EARTH_RADIUS = 6.371e6  # m
STEFAN_BOLTZMANN = 5.670374e-8  # W m-2 K-4 (CODATA 2018)
SOLAR_CONSTANT = 1361.0  # W m-2 (Kopp & Lean 2011, doi:10.1029/2010GL045777)
FREEZING_POINT = 273.15  # K
DENSITY_OF_WATER = 1000.0  # kg m-3, slab ocean
SPECIFIC_HEAT_OF_WATER = 4000.0  # J kg-1 K-1, slab ocean
DENSITY_OF_SEA_WATER = 1035.0  # kg m-3, CM4
SPECIFIC_HEAT_OF_SEA_WATER = 3992.0  # J kg-1 K-1, CM4
REFERENCE_SALINITY = 35.0  # psu
