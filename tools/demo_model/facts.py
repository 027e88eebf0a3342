"""The small world of the demo model: the facts it is taught, as plain Python data.

Everything here was written for this project.  The tables are short on purpose: a model of a few million
parameters can hold them all, so that it can be exact about them and honest about the rest.
"""

from __future__ import annotations

from .reading import read_lines, words

# Country:capital, one continent a block.  The first twelve or so of a block are asked for more often.
_WORLD: dict[str, str] = {
    "Europe": """
France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Poland:Warsaw Austria:Vienna
Greece:Athens Sweden:Stockholm Norway:Oslo Denmark:Copenhagen Finland:Helsinki Ireland:Dublin
Belgium:Brussels the_Netherlands:Amsterdam Switzerland:Bern Hungary:Budapest Ukraine:Kyiv Russia:Moscow
the_United_Kingdom:London the_Czech_Republic:Prague Romania:Bucharest Iceland:Reykjavik Croatia:Zagreb
Serbia:Belgrade Bulgaria:Sofia Slovakia:Bratislava Slovenia:Ljubljana Estonia:Tallinn Latvia:Riga
Lithuania:Vilnius Albania:Tirana Belarus:Minsk Moldova:Chisinau Malta:Valletta Luxembourg:Luxembourg
Monaco:Monaco Andorra:Andorra_la_Vella Liechtenstein:Vaduz San_Marino:San_Marino Montenegro:Podgorica
North_Macedonia:Skopje Bosnia_and_Herzegovina:Sarajevo England:London Scotland:Edinburgh Wales:Cardiff
""",
    "Asia": """
Japan:Tokyo China:Beijing India:New_Delhi South_Korea:Seoul Thailand:Bangkok Vietnam:Hanoi
Indonesia:Jakarta Turkey:Ankara Iran:Tehran Iraq:Baghdad Pakistan:Islamabad Saudi_Arabia:Riyadh
North_Korea:Pyongyang the_Philippines:Manila Malaysia:Kuala_Lumpur Singapore:Singapore Nepal:Kathmandu
Bangladesh:Dhaka Mongolia:Ulaanbaatar Afghanistan:Kabul Jordan:Amman Lebanon:Beirut Syria:Damascus
Qatar:Doha Kuwait:Kuwait_City Oman:Muscat Yemen:Sanaa Bahrain:Manama the_United_Arab_Emirates:Abu_Dhabi
Georgia:Tbilisi Armenia:Yerevan Azerbaijan:Baku Kazakhstan:Astana Uzbekistan:Tashkent
Turkmenistan:Ashgabat Kyrgyzstan:Bishkek Tajikistan:Dushanbe Cambodia:Phnom_Penh Laos:Vientiane
Bhutan:Thimphu the_Maldives:Male Brunei:Bandar_Seri_Begawan East_Timor:Dili Taiwan:Taipei
""",
    "Africa": """
Egypt:Cairo Kenya:Nairobi Nigeria:Abuja South_Africa:Pretoria Morocco:Rabat Ethiopia:Addis_Ababa
Ghana:Accra Tunisia:Tunis Algeria:Algiers Senegal:Dakar Uganda:Kampala Tanzania:Dodoma Libya:Tripoli
Sudan:Khartoum South_Sudan:Juba Somalia:Mogadishu Rwanda:Kigali Burundi:Gitega Zambia:Lusaka
Zimbabwe:Harare Mozambique:Maputo Angola:Luanda Namibia:Windhoek Botswana:Gaborone Madagascar:Antananarivo
Mali:Bamako Niger:Niamey Chad:Ndjamena Cameroon:Yaounde Gabon:Libreville Togo:Lome Benin:Porto-Novo
Liberia:Monrovia Sierra_Leone:Freetown Guinea:Conakry Gambia:Banjul Mauritania:Nouakchott Malawi:Lilongwe
Lesotho:Maseru Eritrea:Asmara Djibouti:Djibouti Mauritius:Port_Louis Burkina_Faso:Ouagadougou
Cape_Verde:Praia the_Seychelles:Victoria
""",
    "North America": """
the_United_States:Washington Canada:Ottawa Mexico:Mexico_City Cuba:Havana Jamaica:Kingston
Panama:Panama_City Costa_Rica:San_Jose Guatemala:Guatemala_City Honduras:Tegucigalpa Nicaragua:Managua
El_Salvador:San_Salvador Haiti:Port-au-Prince the_Dominican_Republic:Santo_Domingo the_Bahamas:Nassau
Barbados:Bridgetown Belize:Belmopan Trinidad_and_Tobago:Port_of_Spain Grenada:Saint_George
""",
    "South America": """
Brazil:Brasilia Argentina:Buenos_Aires Chile:Santiago Peru:Lima Colombia:Bogota Venezuela:Caracas
Ecuador:Quito Bolivia:Sucre Uruguay:Montevideo Paraguay:Asuncion Guyana:Georgetown Suriname:Paramaribo
""",
    "Oceania": """
Australia:Canberra New_Zealand:Wellington Fiji:Suva Papua_New_Guinea:Port_Moresby Samoa:Apia Tonga:Nukualofa
Vanuatu:Port_Vila
""",
}

COUNTRIES: list[tuple[str, str, str]] = [
    (pair.split(":")[0].replace("_", " "), pair.split(":")[1].replace("_", " "), continent)
    for continent, block in _WORLD.items()
    for pair in block.split()
]
"""``(country, capital, continent)`` for every country that the model knows."""

POPULAR = {
    country
    for block in _WORLD.values()
    for country in [pair.split(":")[0].replace("_", " ") for pair in block.split()[:18]]
}
"""The countries that a visitor is likeliest to ask for; they are trained on more often."""

ALIASES = {
    "the United States": ["the USA", "the US", "America", "the United States of America", "USA"],
    "the United Kingdom": ["the UK", "Great Britain", "UK", "Britain"],
    "the Netherlands": ["Holland", "Netherlands"],
    "the Czech Republic": ["Czechia"],
    "the United Arab Emirates": ["the UAE"],
    "the Philippines": ["Philippines"],
}
"""Other names that a question may use; the answer repeats the name in :data:`COUNTRIES`."""

OPPOSITES: list[tuple[str, str]] = [
    (a, b)
    for a, b in (
        pair.split(":")
        for pair in words("""
hot:cold big:small tall:short fast:slow up:down left:right in:out on:off open:closed day:night black:white
good:bad happy:sad rich:poor young:old early:late easy:difficult hard:soft light:dark
high:low near:far full:empty wet:dry clean:dirty strong:weak thick:thin wide:narrow deep:shallow loud:quiet
smooth:rough sharp:blunt true:false yes:no right:wrong first:last start:stop push:pull give:take
buy:sell win:lose love:hate laugh:cry sit:stand come:go remember:forget arrive:leave ask:answer above:below
inside:outside front:back top:bottom north:south east:west summer:winter male:female king:queen
brave:cowardly sweet:bitter alive:dead awake:asleep safe:dangerous cheap:expensive beautiful:ugly
polite:rude simple:complex same:different always:never many:few more:less everything:nothing
everybody:nobody before:after over:under accept:refuse success:failure peace:war friend:enemy public:private
ancient:modern guilty:innocent tight:loose increase:decrease expand:shrink maximum:minimum
positive:negative import:export lock:unlock visible:invisible possible:impossible lucky:unlucky hero:villain
teacher:student entrance:exit sunrise:sunset victory:defeat generous:greedy calm:nervous begin:end
straight:curved raw:cooked fresh:stale noisy:silent major:minor odd:even plus:minus float:sink freeze:melt
""")
    )
]
"""Pairs of opposites; :data:`OPPOSITE_OF` adds the way back where it is not already taken."""

OPPOSITE_OF: dict[str, str] = {}
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_a, _b)
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_b, _a)
# Words with two meanings: the answer a person gives first.
OPPOSITE_OF.update(
    heavy="light", light="dark", dark="light", hard="soft", old="young", new="old", short="tall", easy="hard",
    right="left", quiet="loud", back="front", difficult="easy", wrong="right", answer="question",
    question="answer", end="beginning", beginning="end", stop="start", cold="hot", small="big", large="small",
    little="big", tiny="huge", huge="tiny", warm="cool", shut="open", dull="bright", bright="dull", man="woman",
    woman="man", boy="girl", girl="boy", ceiling="floor", floor="ceiling", correct="incorrect",
    incorrect="correct", forward="backward", backward="forward",
)  # fmt: skip

# unit in the plural | whole, with its article | amount
UNITS: list[tuple[str, str, str]] = [
    (line.split("|")[0], line.split("|")[1], line.split("|")[2])
    for line in """
seconds|a minute|60
minutes|an hour|60
hours|a day|24
days|a week|7
months|a year|12
weeks|a year|52
days|a year|365
days|a leap year|366
seconds|an hour|3600
minutes|a day|1440
minutes|half an hour|30
minutes|a quarter of an hour|15
hours|a week|168
hours|half a day|12
months|half a year|6
months|a quarter|3
quarters|a year|4
seasons|a year|4
years|a decade|10
years|a century|100
years|a millennium|1000
decades|a century|10
days|a fortnight|14
weeks|a fortnight|2
milliseconds|a second|1000
hours|two days|48
days|two weeks|14
minutes|two hours|120
seconds|two minutes|120
metres|a kilometre|1000
centimetres|a metre|100
millimetres|a centimetre|10
millimetres|a metre|1000
grams|a kilogram|1000
milligrams|a gram|1000
kilograms|a tonne|1000
millilitres|a litre|1000
inches|a foot|12
feet|a yard|3
yards|a mile|1760
feet|a mile|5280
ounces|a pound|16
pounds|a stone|14
cups|a pint|2
pints|a quart|2
quarts|a gallon|4
pints|a gallon|8
bits|a byte|8
bytes|a kilobyte|1000
bytes|a kibibyte|1024
cents|a dollar|100
pence|a pound sterling|100
degrees|a circle|360
degrees|a right angle|90
items|a dozen|12
eggs|a dozen|12
items|half a dozen|6
sides|a triangle|3
corners|a triangle|3
sides|a square|4
sides|a rectangle|4
sides|a pentagon|5
sides|a hexagon|6
sides|an octagon|8
faces|a cube|6
letters|the English alphabet|26
vowels|the English alphabet|5
players|a football team|11
strings|a violin|4
strings|a guitar|6
cards|a deck of cards|52
squares|a chess board|64
wheels|a bicycle|2
wheels|a car|4
wheels|a tricycle|3
continents|the world|7
planets|the solar system|8
legs|a spider|8
legs|an insect|6
legs|a dog|4
legs|a cat|4
legs|a horse|4
legs|a bird|2
arms|an octopus|8
fingers|a hand|5
toes|a foot|5
""".strip().splitlines()
]
"""How many of one thing there are in another."""

SPELLINGS = {
    "metre": "meter", "kilometre": "kilometer", "centimetre": "centimeter", "millimetre": "millimeter",
    "litre": "liter", "millilitre": "milliliter", "tonne": "ton",
    "kilogram": "kilo", "centimetres": "cm", "millimetres": "mm", "metres": "m", "grams": "g",
}  # fmt: skip
"""Spellings that a question may use instead."""

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
MONTH_SEASON = ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
PLANETS = words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")

COLOURS = dict(
    pair.split(":")
    for pair in words("""
grass:green the_sky:blue snow:white coal:black blood:red a_banana:yellow an_orange:orange a_lemon:yellow
a_tomato:red a_strawberry:red milk:white chocolate:brown the_sun:yellow a_carrot:orange a_frog:green
a_flamingo:pink a_crow:black a_polar_bear:white an_elephant:grey a_leaf:green a_cherry:red a_pea:green
a_fire_engine:red the_sea:blue the_night:black a_swan:white a_pumpkin:orange a_raven:black a_cucumber:green
""")
)
"""Thing:colour, with underscores for spaces."""

SOUNDS = dict(
    pair.split(":")
    for pair in words("""
dog:woof cat:meow cow:moo sheep:baa duck:quack horse:neigh pig:oink lion:roar frog:croak bee:buzz
snake:hiss rooster:cock-a-doodle-doo mouse:squeak owl:hoot crow:caw wolf:howl
""")
)
"""Animal:sound."""

YOUNG = dict(
    pair.split(":")
    for pair in words("""
dog:puppy cat:kitten cow:calf sheep:lamb duck:duckling horse:foal pig:piglet lion:cub bear:cub frog:tadpole
goat:kid hen:chick deer:fawn goose:gosling swan:cygnet kangaroo:joey
""")
)
"""Animal:young one."""

GENERAL = read_lines("general")
"""Single questions with several phrasings each."""

CITIES = words("""
London Barcelona Munich Hamburg Milan Naples Venice Florence Marseille Nice Toulouse Geneva Zurich
Rotterdam Antwerp Bruges Manchester Liverpool Glasgow Belfast Birmingham Leeds Cambridge Oxford Malaga Valencia
Bilbao Gothenburg Malmo Aarhus Turku Tampere Split Dubrovnik Istanbul Izmir Mumbai Kolkata Chennai Bangalore
Shanghai Shenzhen Hong_Kong Kyoto Nagoya Sapporo Busan Sydney Melbourne Perth Brisbane Auckland Toronto
Montreal Vancouver Calgary New_York Los_Angeles Chicago Houston Boston Seattle Denver Dallas Miami Atlanta
San_Francisco San_Diego Las_Vegas New_Orleans Philadelphia Phoenix Portland Rio_de_Janeiro Sao_Paulo Cusco
Medellin Cartagena Lagos Casablanca Marrakesh Cape_Town Johannesburg Durban Mombasa Alexandria Dubai Jeddah
Karachi Lahore Frankfurt Cologne Dresden Leipzig Stuttgart Salzburg Graz Innsbruck Turin Palermo Saint_Petersburg
""")
"""More cities for weather questions (underscores for spaces); the tests also ask for cities not in any list."""

FIRST_NAMES = words("""
Anna Ben Carla David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Peter Quinn Rosa Sam Tina Uma
Victor Wendy Xavier Yara Zoe Alice Bob Clara Daniel Eva Frank Hanna Ivan Julia Karl Laura Mark Nina Oscar Paul
Rita Simon Thomas Ursula Vera Walter Ali Fatima Chen Wei Yuki Hiro Priya Arjun Omar Leila Juan Sofia Mateo Ines
""")
"""First names for people the model meets in a conversation."""
