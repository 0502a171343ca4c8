"""Word lists and sentence frames for :mod:`trimtab.datasets.prose`.

``<key>`` in a frame or word stands for a word of that list (``key_season`` when the list depends on the
season); ``<key:tag>`` is drawn once per document.  ``$n $m $s $o $p $z`` stand for the main person: name
as subject and as object, subject, object and possessive pronoun, and a plural ending.
"""

from __future__ import annotations

from typing import NamedTuple


def _t(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split("|"))


WOMEN: tuple[str, ...] = _t(
    "Amina|Beatriz|Clara|Dalia|Elin|Farida|Greta|Hana|Ines|Joanna|Kamala|Leila|Mira|Nadia|Olwen|"
    "Petra|Rosa|Signe|Tamsin|Ursula|Vera|Wanda|Ximena|Yuki|Zofia|Aroha|Bronwen|Chiara|Dunya|Esther|"
    "Freya|Gulsen|Ilse|Kerstin|Lucia|Mei|Nkechi|Padma|Soledad|Thandi"
)
MEN: tuple[str, ...] = _t(
    "Adem|Bruno|Carlos|Dewi|Emil|Farouk|Gareth|Hiroshi|Ivo|Jonas|Kofi|Lars|Mateo|Nikolai|Oskar|"
    "Pavel|Rafael|Samir|Tobias|Umar|Viktor|Walter|Yusuf|Zoltan|Anton|Basil|Callum|Dmitri|Enzo|"
    "Felix|Goran|Henrik|Idris|Kenji|Luca|Marek|Nuno|Piotr|Ravi|Tariq"
)
SEASONS: tuple[str, ...] = ("spring", "summer", "autumn", "winter")

WORDS: dict[str, tuple[str, ...]] = {
    "place": _t(
        "Alderby|Brackwell|Corvane|Dunmoss|Elmhythe|Fernley Cross|Garrowmere|Hollin Green|Istran|"
        "Jessel|Kelderwick|Larkstone|Merrow Bridge|Nettlecombe|Ottery Fold|Pellan|Quarrow|"
        "Rushford End|Sallowby|Tarn Hollow|Underleigh|Vasselin|Withy Quay|Yarrowdale|Zellen|"
        "Birchover|Cattermoor|Draycott Sands|Esker Point|Fallowmere|Gillstead|Hobmere|Innerlea|"
        "Marlow Steps|Northgill|Orsino Bay|Penny Wharf"
    ),
    "when": _t(
        "on a <fair> <season> morning|early on <day> morning|one <fair> <day> in <month>|"
        "in the <nth> week of <month>|on the <nth> <day> of <month>|"
        "soon after breakfast on a <fair> <day>|shortly before <clock> one <day>|"
        "at <clock> on a <fair> <day>|on a <fair> morning in <month>|"
        "<few> days before the end of <month>|towards the middle of <month>|"
        "on a <fair> <day> in <season>|one <day> morning in <month>|"
        "just after <clock> on a <fair> <day>|<few> days after the <season> fair"
    ),
    "eve": _t(
        "late in the afternoon|towards evening|at dusk|as the light faded|at the end of the day|"
        "when the clock struck <bell>|after sunset|just before dark|when the first stars came out|"
        "as the shadows grew long|a little after <hour>|when the lamps were lit|by <hour>|"
        "as the <road> grew quiet|once the <building> had closed|at about <hour> that evening|"
        "when the <birds> had settled in the trees|as the sky turned <colour>"
    ),
    "day": _t("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "nth": _t("first|second|third|last"),
    "clock": _t("seven|eight|nine|half past seven|half past eight|a quarter past nine|a quarter past eight"),
    "hour": _t("four|five|six|seven|half past four|half past five|half past six"),
    "hot": _t("red|orange|yellow|white|dull red|deep orange"),
    "few": _t("three|four|five|six|seven|eight|nine|ten"),
    "many": _t("twelve|fourteen|fifteen|sixteen|eighteen|twenty|thirty|forty|fifty|sixty|eleven|twenty-four"),
    "month_spring": _t("March|April|May"),
    "month_summer": _t("June|July|August"),
    "month_autumn": _t("September|October|November"),
    "month_winter": _t("December|January|February"),
    "fair_spring": _t("mild|bright|damp|breezy|clear|fresh|misty|cool|showery|blowy|sunny"),
    "fair_summer": _t("warm|hot|dry|still|cloudless|hazy|bright|sunny|sultry|pleasant|windless"),
    "fair_autumn": _t("grey|golden|chilly|foggy|crisp|blustery|windy|quiet|drizzly|mellow|cool|dull"),
    "fair_winter": _t("cold|frosty|icy|snowy|raw|bitter|dark|still|grey|cloudy|windy"),
    "flowers_spring": _t("tulips|daffodils|primroses|violets|bluebells|crocuses|cowslips|hyacinths|wallflowers"),
    "flowers_summer": _t("roses|poppies|lilies|foxgloves|sweet peas|marigolds|hollyhocks|daisies|cornflowers"),
    "flowers_autumn": _t("asters|dahlias|chrysanthemums|sunflowers|late roses|sedums|michaelmas daisies"),
    "flowers_winter": _t("snowdrops|hellebores|holly sprigs|dried grasses|ivy leaves|fir branches"),
    "crops_spring": _t("radishes|spring onions|lettuces|leeks|young carrots|spinach leaves|pea shoots"),
    "crops_summer": _t("beans|tomatoes|peas|strawberries|cherries|cucumbers|new potatoes|raspberries|currants"),
    "crops_autumn": _t("apples|pears|pumpkins|plums|onions|potatoes|blackberries|walnuts|marrows|hazelnuts"),
    "crops_winter": _t("turnips|parsnips|cabbages|sprouts|leeks|beetroots|stored apples|swedes|chestnuts"),
    "sky_spring": _t(
        "a light shower|a fresh breeze|thin sunshine|a bank of white cloud|a pale rainbow|morning mist|soft rain"
    ),
    "sky_summer": _t("strong sunshine|a warm breeze|a heat haze|high white cloud|a thin mist|a brief shower"),
    "sky_autumn": _t(
        "low fog|a gusty wind|fine drizzle|a veil of mist|slanting sunlight|heavy rain|a swirl of dry leaves"
    ),
    "sky_winter": _t("thin snow|a cutting wind|weak sunlight|freezing fog|a flurry of sleet|low grey cloud|light snow"),
    "kin": _t(
        "aunt|uncle|grandmother|grandfather|cousin|neighbour|godmother|great-aunt|old friend|"
        "sister-in-law|brother-in-law|niece|nephew|former teacher|landlady|lodger"
    ),
    "trade": _t(
        "baker|carpenter|miller|smith|gardener|postman|tailor|fishmonger|shepherd|cobbler|cooper|"
        "weaver|librarian|porter|ferryman|cheesemaker|butcher|saddler|glazier|plumber|mason|"
        "thatcher|beekeeper|clockmaker|bookbinder|florist|grocer|caretaker|nurse|driver|groom|"
        "roofer|dressmaker|chemist|upholsterer|locksmith|teacher|surveyor"
    ),
    "folk": _t(
        "children|farmers|travellers|shoppers|cyclists|fishermen|students|carters|visitors|"
        "musicians|builders|walkers|sailors|apprentices|schoolgirls|old men|young couples|painters|"
        "market women|cousins|clerks|bakers|hikers|road menders|neighbours"
    ),
    "building": _t(
        "mill|chapel|bakery|school|library|station|post office|town hall|forge|dairy|inn|museum|"
        "clinic|bookshop|brewery|boathouse|cooperage|bathhouse|courthouse|theatre|tea room|"
        "warehouse|village hall|signal box|lighthouse|almshouse|tannery|customs house"
    ),
    "spot": _t(
        "orchard|meadow|churchyard|duck pond|allotment|bandstand|weir|quarry|cornfield|paddock|"
        "playing field|footbridge|crossroads|walled garden|drinking trough|village green|"
        "stone cross|milestone|old well|hay barn|sheepfold|vineyard|copse|cart shed|cricket pitch|"
        "water tower|level crossing|nursery"
    ),
    "road": _t(
        "lane|track|footpath|road|towpath|alley|street|bridleway|causeway|avenue|drive|terrace|"
        "embankment|high street|farm road|cobbled yard|gravel path"
    ),
    "tree": _t(
        "oak|elm|ash|beech|willow|lime|chestnut|birch|hawthorn|rowan|maple|poplar|alder|cedar|"
        "larch|sycamore|hornbeam|walnut|fig|mulberry|pine|yew|plum|pear|apple|cherry"
    ),
    "birds": _t(
        "sparrows|crows|pigeons|gulls|starlings|finches|robins|magpies|rooks|wrens|blackbirds|"
        "jackdaws|ducks|geese|doves|larks|thrushes|herons|moorhens|wagtails|jays|swans|linnets|"
        "pheasants"
    ),
    "beast": _t(
        "brown cow|grey donkey|white goat|black horse|spotted pig|young calf|tabby cat|sheepdog|"
        "ginger cat|bay mare|piebald pony|woolly ram|old ewe|red hen|speckled goose|mule|terrier|"
        "spaniel|nanny goat|lame lamb|roan heifer|shaggy pony|white rooster|black puppy"
    ),
    "beasts": _t(
        "cows|goats|sheep|hens|geese|pigs|ponies|calves|lambs|donkeys|turkeys|ducks|bullocks|ewes|"
        "heifers|rabbits|mules|horses|guinea fowl|kids|bantams"
    ),
    "tool": _t(
        "hammer|spade|rake|saw|trowel|mallet|hoe|drill|screwdriver|broom|oilcan|sickle|pocketknife|"
        "ball of twine|lantern|wire brush|paintbrush|measuring tape|chisel|pickaxe|hatchet"
    ),
    "part": _t(
        "axle|handle|hinge|wheel|spring|bolt|bracket|chain|pedal|valve|latch|pulley|bearing|gear|"
        "spindle|washer|strap|buckle|drawer|spoke|lever|rod|lock|panel|cord|leg|frame|lid|catch|"
        "nut|rivet|knob"
    ),
    "thing": _t(
        "chair|clock|bicycle|kettle|pump|lamp|sewing machine|cartwheel|table|accordion|sledge|"
        "ladder|music box|typewriter|bench|grindstone|weathervane|cupboard|spinning wheel|"
        "butter churn|radio|rocking horse|cradle|bookcase|toy train|coffee grinder|folding screen|"
        "pushchair|barometer|mangle"
    ),
    "box": _t(
        "basket|crate|box|sack|bag|hamper|cardboard box|canvas bag|satchel|rucksack|string bag|"
        "wicker basket|leather bag|holdall|shopping bag|cloth bag|willow basket|tin box|linen bag|"
        "straw basket|travelling bag"
    ),
    "food": _t(
        "bread|cheese|soup|boiled eggs|rice|cold ham|stew|porridge|pancakes|dumplings|fried fish|"
        "noodles|lentils|potato pie|oatcakes|plum cake|roast chicken|flatbread|smoked trout|"
        "baked beans|omelettes|mushroom pie|barley broth|sausages|fritters|salad|cornbread|"
        "pickled onions|ginger biscuits|raisin buns|honey cake|seed cake|apple tart|"
        "stuffed peppers"
    ),
    "drink": _t(
        "tea|coffee|cocoa|milk|apple juice|lemonade|mint tea|barley water|ginger beer|hot milk|"
        "cider|elderflower cordial|buttermilk|spring water|blackcurrant juice|rosehip tea"
    ),
    "ware": _t(
        "candles|ribbons|buttons|clay pots|woollen socks|brushes|spoons|baskets|notebooks|knives|"
        "tablecloths|toys|lampshades|blankets|needles|straw hats|leather belts|teapots|"
        "mirrors|umbrellas|gloves|brooms|picture frames|postcards|spices|jars of honey|rugs|bells|"
        "copper pans|balls of wool|enamel mugs"
    ),
    "old": _t(
        "old|small|plain|heavy|faded|sturdy|worn|little|battered|simple|large|handsome|dusty|"
        "weathered|stout|scratched|well-used|big|shabby|well-made|good|pretty|ordinary|smooth|"
        "strong|old-fashioned"
    ),
    "colour": _t(
        "red|blue|green|yellow|brown|grey|white|black|orange|cream|pink|silver|crimson|violet|"
        "purple|scarlet|olive|amber|navy blue|pale green|dark red|sky blue|russet|ivory|turquoise"
    ),
    "garment": _t("coat|jacket|cap|apron|jumper|cloak|hat|shawl|overcoat|waistcoat|raincoat|anorak|cardigan"),
    "cloth": _t("linen|wool|cotton|canvas|flannel|silk|felt|velvet|muslin|sackcloth|tweed|calico|corduroy|damask"),
    "stuff": _t("oak|brass|copper|tin|steel|leather|ash wood|bamboo|iron|pine|wicker|walnut|tinplate"),
    "how": _t(
        "slowly|carefully|quietly|patiently|gently|steadily|neatly|briskly|without hurry|"
        "with great care|calmly|cheerfully|in silence|evenly|methodically|skilfully"
    ),
    "while": _t(
        "for an hour|for a while|until noon|for <many> minutes|until lunchtime|"
        "for nearly two hours|for half an hour|for some time|until the bell rang|"
        "for the rest of the morning|until the sun was high"
    ),
    "room": _t(
        "kitchen|hall|parlour|pantry|cellar|attic|porch|scullery|shed|back room|study|storeroom|"
        "laundry|conservatory|front room|outhouse"
    ),
    "surface": _t(
        "table|windowsill|shelf|bench|dresser|mantelpiece|counter|sideboard|desk|chest of drawers|"
        "trestle|side table|bookcase"
    ),
    "sound": _t(
        "a church bell|a dog barking|a piano|somebody whistling|a cart on the cobbles|a tractor|"
        "a distant train|children singing|an axe on wood|hammering|a brass band|running water|"
        "a flute|a gate banging|hooves on the road|a fiddle|a cockerel|a handsaw|somebody laughing|"
        "a motorboat|a ship's horn|a wireless|a broom on stone|the wind in the trees|"
        "a squeaking wheel|a distant drum"
    ),
    "smell": _t(
        "fresh bread|wood smoke|cut grass|coffee|wet earth|tar|roasted nuts|soap|paint|"
        "baked apples|hay|leather|pine needles|frying onions|lavender|sawdust|seaweed|damp wool|"
        "cinnamon|beeswax|ink|mint|coal smoke"
    ),
    "mood": _t(
        "tired|content|hungry|glad|cheerful|calm|sleepy|warm|pleased|at ease|rested|peaceful|wide awake|hungry again"
    ),
    "find": _t(
        "coin|key|button|feather|glove|pencil|letter|photograph|marble|horseshoe|thimble|brooch|"
        "comb|whistle|ribbon|penknife|snail shell|pebble|ticket|handkerchief|ring|map|spoon|cork|"
        "bead|acorn"
    ),
    "stage": _t(
        "valley|river|canal|hills|woods|marsh|lake|coast|plain|fields|reservoir|moor|estuary|"
        "foothills|vineyards|pine forest|water meadows|cliffs|heath|downs|pastures"
    ),
    "craft": _t(
        "rowing boat|barge|ferry|fishing boat|sailing dinghy|punt|steamer|tugboat|launch|"
        "coal barge|ketch|paddle boat|canoe|trawler"
    ),
    "lesson": _t(
        "arithmetic|spelling|drawing|singing|geography|handwriting|reading|botany|needlework|music|"
        "woodwork|measuring|map making|weather recording|poetry|gymnastics"
    ),
    "model": _t(
        "kite|paper boat|bird box|wall map|clay jug|calendar|puppet|rain gauge|lantern|flag|"
        "cardboard castle|scrapbook|sundial|windmill|abacus|mobile|poster"
    ),
    "vessel": _t("bowl|jug|pitcher|basin|deep dish|pot|china bowl|crock|mixing bowl|stoneware jar|glass jar|saucepan"),
    "pattern": _t(
        "leaves|stripes|stars|fish|waves|diamonds|birds|vines|dots|circles|feathers|chequers|"
        "acorns|flowers|spirals|shells|zigzags|ferns"
    ),
    "news": _t(
        "the new roof|a wedding in <month>|the <season> concert|the <kin>'s garden|"
        "the price of coal|a lost <find>|the <old> <thing>|the repairs at the <building>|"
        "the trip to <place>|a litter of kittens|the school play|the <beasts>|the choir|"
        "the move to <place>|a change of lodgings|a walk by the <spot>|the boat race|the <crops>|"
        "the flooded <road>|the <trade>'s new van"
    ),
    "shorefind": _t(
        "shells|bits of driftwood|smooth pebbles|strands of seaweed|crab claws|cork floats|"
        "pieces of green glass|rope ends|limpets|cuttlebones|feathers|flat stones|mussels|razor shells|"
        "fishing weights"
    ),
    "gooddish": _t(
        "loaf|stew|pie|soup|cake|pudding|batch of buns|tart|casserole|pot of jam|pan of rice|curry|"
        "tray of rolls|omelette|chutney|risotto|trifle|batch of scones|pot of beans|crumble"
    ),
    "flavour": _t(
        "butter|salt|nutmeg|sugar|pepper|honey|parsley|garlic|flour|cream|vinegar|ginger|thyme|"
        "mustard|raisins|almonds|lemon peel|bay leaves|oil|saffron|rosemary|cloves|sage|dill|"
        "cardamom|onion"
    ),
    "fair_water": _t("calm|clear|green|grey|choppy|smooth|brown|rough|dark|glassy|silvery|quick|deep"),
    "while_plain": _t(
        "for an hour|for a while|for half an hour|for <many> minutes|until the clock struck two|for some time"
    ),
    "bell": _t("four|five|six|seven"),
    "night": _t(
        "later that evening|after supper|that night|at bedtime|towards ten that night|"
        "late that night|before going to bed|when the house was quiet|with the lamp turned low"
    ),
    "rain_spring": _t("a light shower|soft rain|a cold shower|a sprinkle of hail|a quick burst of rain"),
    "rain_summer": _t("a brief shower|a thunderstorm|warm rain|a heavy shower|an hour of rain"),
    "rain_autumn": _t("heavy rain|fine drizzle|a rainstorm|steady rain|a squall"),
    "rain_winter": _t("a flurry of sleet|a fall of snow|freezing rain|a snowstorm|cold rain"),
    "pace": _t(
        "slowly|quietly|steadily|without hurry|calmly|cheerfully|in silence|in good spirits|lazily|"
        "at an easy pace|contentedly"
    ),
    "flow": _t("slowly|quietly|gently|steadily|smoothly|evenly|softly|calmly|lazily|gradually"),
    "talk": _t("quietly|softly|cheerfully|in low voices|slowly|politely|eagerly"),
    "handtool": _t(
        "hammer|chisel|file|plane|mallet|rasp|wrench|small saw|screwdriver|pair of pliers|scraper|"
        "penknife|hand drill|wire brush|spanner|crowbar"
    ),
    "gartool": _t("spade|rake|broom|hoe|pitchfork|shovel|ladder|fishing rod|scythe|long pole|coil of rope|fork"),
    "pot": _t(
        "bowl|jug|vase|plate|cup|pitcher|teapot|dish|flowerpot|mug|butter dish|candlestick|platter|"
        "beaker|sugar pot|egg cup|tankard|water jar"
    ),
    "mason": _t("stone|brick|granite|slate|oak|iron|limestone|timber|concrete|sandstone|flint"),
    "metal": _t("brass|copper|tin|pewter|steel|iron|enamel|zinc|silver|tinned|bronze|nickel"),
    "pale": _t("white|cream|pale blue|grey|yellow|pale green|ivory|pink|buff|lilac|brown"),
    "ink": _t("blue|black|green|brown|violet|dark red|purple|grey"),
    "bigbeast": _t(
        "brown cow|grey donkey|white goat|black horse|bay mare|piebald pony|mule|nanny goat|"
        "roan heifer|shaggy pony|woolly ram|spotted calf"
    ),
    "puller": _t("black horse|grey donkey|mule|bay mare|piebald pony|chestnut mare|pair of oxen"),
    "dog": _t("terrier|spaniel|sheepdog|black puppy|collie|brown hound|greyhound|white poodle"),
    "pet": _t("tabby cat|ginger cat|terrier|spaniel|sheepdog|black puppy|white kitten|old hound|tame rabbit|grey cat"),
    "talk2": _t("cheerfully|politely|quietly|kindly|briefly|with a smile"),
    "gardentool": _t("spade|rake|hoe|trowel|fork|sickle|pair of shears|pruning knife|watering can|dibber|stiff broom"),
    "poultry": _t("hens|ducks|geese|turkeys|rabbits|bantams|pigeons"),
    "blade": _t("sickle|knife|pruning hook|billhook|scythe|small blade"),
    "plank": _t("oak|pine|beech|larch|elm|cedar|birch"),
    "jam": _t("plum jam|honey|marmalade|pickles|quince jelly|chutney|damson jam|mustard"),
    "eve2": _t("by <hour>|by dusk|by nightfall|by the end of the day|by sunset"),
    "mill": _t("big|dripping|mossy|creaking|tall|wooden"),
    "fair_light": _t("pale|golden|soft|grey|silver|clear|bright|dim"),
    "dusk": _t(
        "at dusk|towards evening|after sunset|late in the afternoon|just before dark|at nightfall|"
        "a little after <hour>|at <hour>|at the end of the day|that evening|at sunset|"
        "early that evening"
    ),
    "coatcloth": _t("wool|tweed|canvas|linen|cotton|corduroy|felt|sheepskin|leather|quilted"),
    "rag": _t("sacking|canvas|cotton|linen|flannel|soft|clean|damp|calico|chequered"),
    "ship": _t(
        "barge|ferry|fishing boat|steamer|launch|coal barge|ketch|paddle steamer|trawler|"
        "sailing boat|motor launch|cargo boat"
    ),
}


class Scene(NamedTuple):
    """One kind of scene.

    ``around`` is where it happens (``out``, ``in`` or ``aboard``), ``local`` whether it stays at one place.
    """

    kind: str
    person: bool
    around: str
    local: bool
    seasons: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...]


SHARED: dict[str, tuple[str, ...]] = {
    "weather": (
        "There was <sky> over the <spot>, and the <road> by the <building> was nearly empty.",
        "With <sky> in the air, most of the <folk> stayed close to the <building>.",
        "The day had begun with <sky>, and the <tree> trees near the <spot> hardly moved.",
        "A smell of <smell> drifted from the <building>, and <birds> sat along the roof.",
        "Beyond the <spot> the <stage> lay under <sky>.",
        "It was a <fair> day, and the <folk> on the <road> walked <pace>.",
        "After <rain> in the night, the stones of the <road> shone and the <spot> was quiet.",
        "Some <birds> flew up from the <spot> and came down again beside the <tree> tree.",
        "The wind came from the <stage> and smelled of <smell>.",
        "A row of <flowers> stood in pots outside the <building>, bright against the <colour> door.",
        "The air was <fair>, with a smell of <smell> and the noise of <sound>.",
        "Above the <building> a <colour> flag moved a little in the <fair> air.",
        "The clouds parted over the <stage>, and for a moment the <spot> was full of light.",
        "Near the <spot>, <few> <birds> picked at crumbs beneath a <old> bench.",
        "Everything from the <building> to the <spot> looked clean after <rain>.",
        "The <season> light fell across the <road> and onto the <colour> shutters of the <building>.",
    ),
    "detail": (
        "From somewhere behind the <building> came the sound of <sound>.",
        "A <beast> lay beside the <spot> and watched the <folk> go by.",
        "<Few> <folk> passed with a <old> <box> and stopped to rest near the <tree> tree.",
        "The <trade> came by with a <gartool> over one shoulder and wished everybody a good day.",
        "A child in a <colour> <garment> ran past with a <find> in one hand.",
        "In the window of the <building> hung a <colour> curtain and a <old> <metal> lamp.",
        "There was a smell of <smell>, and farther off came <sound>.",
        "Two <folk> in <coatcloth> coats leaned on the wall of the <building> and spoke <talk>.",
        "A <colour> van from <place> stopped near the <spot>, and the <trade> stepped out.",
        "Under the <tree> tree somebody had left a <colour> <garment> and a <old> <box>.",
        "The <trade> crossed the <road> with a <box> of <ware> and nodded <talk2>.",
        "Some <birds> hopped along the edge of the <road>, close to a <beast>.",
        "A <find> lay on the ground by the <spot>, and $n put it on the wall for its owner.",
        "$n stopped once to watch a <beast> cross the <road> towards the <spot>.",
        "Over the noise of <sound>, $n could hear the <trade> humming a tune.",
        "Somebody on the way to the <building> stopped to admire the <flowers> by the <road>.",
        "By the gate, an apprentice of the <trade> was sweeping the step <how>.",
        "For a time $n listened to <sound>, with one hand on a <old> <mason> rail.",
    ),
    "indoors": (
        "On the <surface> stood a <old> box of <stuff>, and beside it lay a <find>.",
        "In the window hung a <colour> curtain and a <old> <metal> lamp.",
        "There was a smell of <smell>, and from outside came the sound of <sound>.",
        "A <old> <thing> stood in the corner with a <rag> cloth over it.",
        "Through the window came the noise of <sound>, and then it was quiet again.",
        "A <pet> slept under the <surface>, on a <colour> rug with <pattern>.",
        "The clock on the <surface> ticked, and <birds> called outside near the <tree> tree.",
        "From the window $s could see the <spot> and <few> <folk> with a <dog>.",
        "Light fell through the window onto a <metal> lamp and a row of <ware>.",
        "A kettle boiled, and $n poured <drink> into a <colour> cup.",
        "The door stood open, and <birds> hopped on the step beside a <colour> pot of <flowers>.",
        "On a nail by the door hung a <colour> <garment> and a bag of <cloth>.",
        "Somebody knocked, and the <trade> came in to ask for a <handtool> and a <find>.",
        "The floor was of <plank> boards, and on it lay a <colour> rug with <pattern>.",
        "Outside on the <road>, <folk> went by with a <box>, and a <dog> ran behind.",
        "$n opened the window to let in the <fair> air and heard <sound>.",
    ),
    "aboard": (
        "$s looked out <while> as <birds> flew over the <stage>.",
        "$p <kin:k> had packed <food> and a flask of <drink>, and $s ate <pace>.",
        "The <trade> offered $o some <food>, and $s poured out <drink> for two.",
        "There was <sky> over the <stage>, and the <folk> on board were quiet.",
        "A child in a <colour> <garment> slept with one arm round a <old> <box>.",
        "$s talked with the <trade> <while>, mostly about <news>.",
        "A woman in a <coatcloth> coat unwrapped <food> and passed some round.",
        "Some of the <folk> played cards on a <old> suitcase with a <colour> lid.",
        "The light on the <stage> was <fair_light>, and <birds> flew low there.",
        "A <dog> lay under the seat, next to a <box> of <ware>.",
        "$s read <few> pages of a <colour> book on <lesson>.",
        "Two <folk> spoke <talk> about <news> and the price of <crops>.",
        "$s counted <many> <birds> and then a herd of <beasts> on the bank.",
        "Near a <spot> a man with a <gartool> waved, and $s waved back.",
        "The air smelled of <smell>, and somebody handed round <drink> in <colour> cups.",
        "$s moved a <box> to make room for <few> <folk> from <place>.",
    ),
    "meal": (
        "At noon $s ate <food> and drank a cup of <drink> beside the <spot>.",
        "The <trade> brought out <food> and a <old> jug of <drink>, and $s ate <pace>.",
        "For lunch $s had <food>, with <drink> poured from a <colour> <vessel>.",
        "$s unwrapped some <food> from a <rag> cloth and offered some to the <trade>.",
        "There was time for <food> and a mug of <drink> under the <tree> tree.",
        "$p <kin:k> had packed <food> and a flask of <drink>, and nothing was left over.",
        "A plate of <food> came round, and after it a tray with glasses of <drink>.",
        "Around midday $s sat down on a <old> bench with <food> and some <drink>.",
        "$s bought <food> and sat down to eat on the steps of the <building>.",
        "Somebody passed round <food> on a <metal> tray, and $s took a <old> cup of <drink>.",
        "Lunch was <food>, eaten <pace> in the <room> with the door open.",
        "$s ate <food>, drank some <drink>, and rested <while>.",
    ),
    "more": (
        "$s wrote the number <many> on a slip of paper and pinned it to a post by the <spot>.",
        "After that $s helped the <trade> to move a <old> <thing> into the <room>.",
        "$p <kin:k> waved from the <spot> and held up a <colour> <box>.",
        "For a short time $s stood by the <spot> and counted <many> <birds>.",
        "$s rolled up $p sleeves and carried a <box> of <ware> as far as the <room>.",
        "Then the <trade> asked for a hand with a <old> <thing>, and $s was happy to help.",
        "Meanwhile $p <kin:k> swept the <room> and filled a <vessel> with <flowers>.",
        "$s put a <find> into a <cloth> bag and went on <pace>.",
        "When a <bigbeast> came too near, $s led it back to the <spot>.",
        "$s borrowed a <tool> from the <trade> and returned it within <many> minutes.",
        "A string on the <box> came loose, so $s tied it again <how> with <colour> thread.",
        "$s lent a <colour> <garment> to $p <kin:k>, who had come without one.",
    ),
    "end": (
        "<night>, $s sat by the window, <mood> after a long day.",
        "At home $s hung $p <colour> <garment>$z by the door and left a <find> on the <surface>.",
        "That night $s slept soundly while <rain> passed over <place:home>.",
        "$s drank a last cup of <drink> in the <room> and listened to <sound>.",
        "<night>, $s sat in the <room> with $p <kin:k>, and the talk was of <news>.",
        "The day ended with <food>, a cup of <drink>, and a <old> lamp in the window.",
        "For the next morning, $s set out a <old> <box> by the door.",
        "<night>, the <road> was empty, and only <sound> could be heard.",
        "Back in the <room>, $s lit a lamp and felt <mood>.",
        "<night>, $s closed the <colour> shutters, and a <beast> settled down outside.",
    ),
    "still": (
        "<eve>, the last of the <folk> went home, and a lamp shone in the <building>.",
        "<eve>, the <trade> closed the <colour> shutters, and the <road> was still.",
        "Later came <rain>, and the <folk> moved indoors with the <beasts> behind them.",
        "<eve>, a <beast> wandered home past the <spot>, followed by <few> <folk>.",
        "The night was <fair>, and only <sound> could be heard beyond the <spot>.",
        "<eve>, windows lit up one by one from the <building> to the <spot>.",
        "At last a <old> gate was shut, and the <birds> grew quiet in the <tree> tree.",
        "By then the <building> was dark, and a smell of <smell> hung over the <road>.",
    ),
}

_ALL = SEASONS
_WARM = ("spring", "summer", "autumn")

SCENES: tuple[Scene, ...] = (
    Scene(
        "market",
        True,
        "out",
        True,
        _ALL,
        (
            (
                "<when>, $n went to the market in <place:home> with a <old> <box> on one arm.",
                "<when>, $n set up a stall of <ware> in the square at <place:home>.",
                "The market at <place:home> opened <when>, and $n arrived with a <box> of <ware>.",
                "<when>, $n came to <place:home> to buy <ware> and a <old> <tool>.",
                "$n reached the market in <place:home> <when>, with a list from $p <kin:k>.",
                "<when>, $n pushed a handcart of <crops> into the square at <place:home>.",
            ),
            (
                "The first row of stalls sold <crops> and <flowers>, and the second sold <ware>.",
                "$s walked <pace> past tables of <ware> and boxes of <crops>.",
                "Beside the next stall, $s found a heap of <crops> on a <colour> cloth.",
                "At the first stall $s looked over the <ware> and then the <colour> <ware>.",
                "The <trade> had laid out <many> bunches of <flowers> and a <box> of <crops>.",
                "Under a <colour> awning, the <trade> weighed <crops> on a <metal> scale.",
            ),
            (
                "$s chose <few> of the <crops> and had them wrapped in <pale> paper.",
                "For <few> coins $s bought <ware>, and the <trade> added a <find> as a gift.",
                "$s traded a <box> of <crops> for <ware> and a <old> <tool>.",
                "After some talk about the <crops>, $s paid the <trade> with <many> small coins.",
                "$s looked at a <colour> <garment>, folded it <how>, and paid for it in coins.",
                "An hour later $s had <crops>, <ware>, and a <old> <metal> bowl.",
            ),
            (
                "$n packed the <crops> under the <ware> and tied the <box> with string.",
                "Towards noon the square filled with <folk>, and $n moved to the shade of the <tree> tree.",
                "$n met $p <kin:k> beside the <building>, and the two lists were compared <talk2>.",
                "When the <box> was full, $n carried it to the <spot> and rested <while>.",
                "$n gave the last of the <crops> to the <trade> and folded the <colour> cloth.",
                "On the way out, $n stopped at one more stall for <flowers> and some <ware>.",
            ),
            (
                "<eve>, the stalls were taken down, and $n went home with a full <box>.",
                "<eve>, $n left <place:home> with the <ware> and a bunch of <flowers>.",
                "$s was home <dusk>, and the <crops> went straight into the <room>.",
                "<eve>, $s spread the <ware> on the <surface> and put a <vessel> of <flowers> beside them.",
                "The cart was light on the way back, and $s reached the <spot> <dusk>.",
                "<eve>, only a few <crops> and a <colour> ribbon were left on the square.",
            ),
        ),
    ),
    Scene(
        "garden",
        True,
        "out",
        True,
        _WARM,
        (
            (
                "<when>, $n opened the gate of the garden at <place:home> and fetched a <gardentool>.",
                "$n began work in the garden behind the <building> <when>, with a <old> <gardentool>.",
                "<when>, $n went out to look at the <crops> in the garden of $p <kin:k>.",
                "The garden at <place:home> was full of <birds> <when>, as $n came out of the <room>.",
                "<when>, $n carried a <box> of seedlings into the garden by the <spot>.",
                "<when>, $n put on $p <colour> <garment>$z and walked down to the beds of <flowers>.",
            ),
            (
                "$s cleared the weeds from around the <flowers> and piled them by the <tree> tree.",
                "First $s dug a <old> bed beside the wall and raked the soil <how>.",
                "$s tied up the <flowers> with <colour> string and a few <tree> sticks.",
                "The <crops> needed water, so $s filled a <metal> can <few> times.",
                "$s marked <few> straight rows with string and covered the seeds <how>.",
                "Between the <flowers> and the <tree> tree, $s spread a barrow of compost.",
            ),
            (
                "Then $s picked the <crops> and laid them in a <old> <box>.",
                "A <bigbeast> had broken the fence, and $s mended it with <tree> poles.",
                "$s cut <many> stems of <flowers> and stood them in a <metal> bowl.",
                "Under a flat stone $s found a <find> and washed it in the <old> trough.",
                "$p <kin:k> came to help, and together the path was swept as far as the <spot>.",
                "$s moved a <old> pot of <flowers> out of the wind and closer to the <room> door.",
            ),
            (
                "$n pruned the <tree> tree <how> and carried the branches to the <spot>.",
                "The <trade> leaned over the wall, and $n handed up some <crops> in a <box>.",
                "$n cleaned the <gardentool> with a handful of grass and hung it in the <room>.",
                "With the <crops> sorted by size, $n worked on <while>.",
                "$n planted <few> more rows and put a <colour> label at the end of each.",
                "By midday $n had filled a <box> with <crops> and another with weeds.",
            ),
            (
                "<eve>, the beds were neat, and water dripped from the <flowers>.",
                "<eve>, $s sat on the <old> step and looked across at the <flowers>.",
                "$s shut the gate <dusk> and took a <vessel> of <flowers> indoors.",
                "<eve>, $s carried the <crops> into the <room> and rinsed them in a <vessel>.",
                "The <birds> came back to the wall <dusk>, when $s had put the <gardentool> away.",
                "<eve>, $s gave the <flowers> a last can of water and went into the <room>.",
            ),
        ),
    ),
    Scene(
        "train",
        True,
        "aboard",
        False,
        _ALL,
        (
            (
                "<when>, $n boarded the train at <place:home> with a <colour> <box>.",
                "$n waited on the platform at <place:home> <when>, beside a <old> trolley.",
                "The train to <place> left <when>, and $n found a place by the window.",
                "<when>, $n bought a ticket to <place> from the clerk at <place:home>.",
                "<when>, $n stepped into a <colour> carriage with <few> <folk> and a <box>.",
                "$n arrived at the station <when>, with $p <kin:k> and a <old> <box>.",
            ),
            (
                "The whistle blew, and the train rolled <flow> past the <building> and the <spot>.",
                "Outside, the <stage> came into view, and then a field of <beasts>.",
                "Opposite sat the <trade>, in a <colour> <garment>, with a <box> of <ware>.",
                "$s put the <box> on the rack and unfolded a <colour> map.",
                "The carriage smelled of <smell>, and the seats were covered in <colour> <cloth>.",
                "Beyond the signal box the line ran beside the <stage> for <many> miles.",
            ),
            (
                "At the next stop <few> <folk> got in with <ware> and a <dog>.",
                "The guard punched the tickets <pace> and asked about the <old> <box>.",
                "In the tunnel the lamps were lit, and $s read a <colour> book <while>.",
                "The train slowed beside the <stage>, where <folk> were mending the <road>.",
                "At <place> there was a wait of <many> minutes, and $s walked along the platform.",
                "$s shared <food> with the <trade>, who was going on to <place>.",
            ),
            (
                "$n looked up as the <stage> ended and the roofs of <place:away> appeared.",
                "A child dropped a <find> under the seat, and $n picked it up.",
                "$n wrote a few lines about the <stage> on the back of a <pale> card.",
                "The train crossed a <mason> bridge, and $n saw a <craft> far below.",
                "For the last part of the way $n stood in the corridor and watched the <birds>.",
                "$n folded the map, put on $p <garment>$z, and lifted down the <box>.",
            ),
            (
                "<eve>, the train drew into <place:away>, and the <trade> opened the door.",
                "$p <kin> was waiting at <place:away> with a <colour> umbrella and a <dog>.",
                "<eve>, $s stepped down at <place:away> and followed the <road> to the <building>.",
                "The platform at <place:away> emptied <dusk>, and the porter put out the <old> lamp.",
                "<eve>, a <colour> bus took $o from the station to the <building>.",
                "$s reached <place:away> <dusk>, <mood>, with the <box> still tied up well.",
            ),
        ),
    ),
    Scene(
        "ferry",
        True,
        "aboard",
        False,
        _ALL,
        (
            (
                "<when>, $n went down to the quay at <place:home>, where a <colour> <ship> was tied up.",
                "<when>, $n crossed the water from <place:home> in a <old> <ship>.",
                "The <ship> from <place:home> sailed <when>, and $n stood near the bow.",
                "$n helped to untie the <colour> <ship> at <place:home> <when> and climbed aboard.",
                "<when>, $n loaded <many> sacks of <crops> onto a <ship> at <place:home>.",
                "<when>, $n joined the <folk> on the landing stage with a <box> of <ware>.",
            ),
            (
                "The ropes were thrown off, and the boat moved <flow> away from the <mason> steps.",
                "$s sat on a <old> coil of rope and watched the <building> grow smaller.",
                "A line of <birds> followed the boat as far as the <colour> buoy.",
                "The deck was stacked with <ware>, <crops>, and a crate of young <poultry>.",
                "The water was <fair_water> near the quay and <fair_water> farther out.",
                "$s helped the <trade> to cover the <ware> with a <colour> sheet.",
            ),
            (
                "Half way over, the captain passed a <old> <craft> and rang the bell.",
                "$s held a long line over the side and caught <few> silver fish.",
                "A wave came over the rail and wet the <trade>'s <colour> <garment>.",
                "$s took a turn at the wheel while the <trade> looked for the <colour> marker.",
                "The boat kept close to the <stage> and passed a <old> jetty of <plank>.",
                "The engine coughed and stopped, and the mate tightened a <part> with a <handtool>.",
            ),
            (
                "$n pulled on $p <colour> <garment>$z and moved out of the spray <while>.",
                "On the far bank $n saw <beasts> near the <spot> and a <colour> boathouse.",
                "$n passed the <ware> down to the <trade> one <box> at a time.",
                "When the bank came near, $n threw the rope to the <trade> on the jetty.",
                "$n coiled the ropes <how> and dried the <old> seats with a <rag> rag.",
                "As the <stage> opened out, $n shaded $p eyes and counted <many> sails.",
            ),
            (
                "<eve>, the boat was made fast, and the <folk> went ashore with the <ware>.",
                "<eve>, $n stepped onto the <mason> quay and walked up to the <building>.",
                "The nets were hung on the <old> rail <dusk>, and $s went home <mood>.",
                "<eve>, a light showed on the <colour> buoy, and the water was still.",
                "$s climbed the steps to the <building> <dusk> with a <box> of <crops>.",
                "<eve>, the last <craft> came in, and the <trade> locked the <old> gate.",
            ),
        ),
    ),
    Scene(
        "repair",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n carried a broken <thing:it> into the workshop at <place:home>.",
                "<when>, $n cleared the bench and set a <old> <thing:it> under the lamp.",
                "The <trade> brought in a <colour> <thing:it> <when>, and $n looked it over.",
                "$n unlocked the <room> <when> and began to mend a <old> <thing:it>.",
                "<when>, $n promised to repair the <thing:it> of $p <kin:k>.",
                "<when>, $n found that the <thing:it> from the <building> had a cracked <part>.",
            ),
            (
                "$s loosened the <part> with a <handtool> and laid it on a <colour> cloth.",
                "One <part> was bent, and another was missing from the <old> frame.",
                "First $s brushed away the dust, and then $s oiled the <part> <how>.",
                "$s took out <many> screws and kept them in a <metal> bowl.",
                "Inside the <thing:it>, $s found a <find> and a <old> piece of <cloth>.",
                "$s drew the <part> on paper and measured it <how> with a ruler.",
            ),
            (
                "$s cut a new <part> from <stuff> and smoothed the edges with a <handtool>.",
                "In a <box> on the shelf there was a <old> <part> of the right size.",
                "$s heated some glue, spread it <pace>, and held the <part> <while>.",
                "The <trade> came in with a <handtool> and a <part> made of <stuff>.",
                "$s worked <while>, with the <handtool> in one hand and the <part> in the other.",
                "A coat of <colour> paint covered the scratches around the <old> <part>.",
            ),
            (
                "$n fitted the <part> again and tested it <few> times, <how>.",
                "The first try failed, so $n filed down the <part> and turned the <handtool> <how>.",
                "$n wiped the <thing:it> with a <rag> rag and stood it by the <surface>.",
                "When the <part> moved freely, $n swept the floor of the <room>.",
                "$n tightened each <part> <how> and put the <handtool> back on its hook.",
                "With a little wax and some <cloth>, $n polished the <colour> <part>.",
            ),
            (
                "<eve>, the <thing:it> worked again, and the <trade> paid with <crops>.",
                "<eve>, $s delivered the <thing:it> to the <building> on a <old> handcart.",
                "$p <kin:k> collected the <thing:it> <dusk> and brought <food> as thanks.",
                "<eve>, $s turned out the lamp and left the <thing:it> on the <surface>.",
                "The <thing:it> stood ready <dusk>, with a <colour> label tied to it.",
                "<eve>, $s wrote the cost of the <part> in a <old> book and shut the door of the <room>.",
            ),
        ),
    ),
    Scene(
        "farm",
        True,
        "out",
        True,
        _ALL,
        (
            (
                "<when>, $n walked across the yard at <place:home> to feed the <beasts:b>.",
                "<when>, $n opened the barn and let the <beasts:b> out to the <spot>.",
                "$n spent a day on the farm of $p <kin:k> <when>, among <beasts:b> and machines.",
                "The <beasts:b> at <place:home> were noisy <when>, as $n came with a <box> of grain.",
                "<when>, $n drove a <old> tractor up the <road> to the <beasts:b>.",
                "<when>, $n counted the <beasts:b> and found that a <beast> was missing.",
            ),
            (
                "$s filled the trough, and the <beasts:b> crowded round the <mason> rim.",
                "A <beast> stood in the doorway and stayed there <while>.",
                "$s scattered a <box> of grain, and <few> <birds> flew down to share it.",
                "The <trade> had left <many> bales by the <spot>, and $s stacked them <how>.",
                "$s brushed a <bigbeast> <how> and checked the <old> strap at its neck.",
                "There was fresh straw in the barn, and $s spread it with a <old> fork.",
            ),
            (
                "Next $s carried <few> buckets of milk to the <room> and covered them with <cloth>.",
                "A gate had come off its hinge, and $s lifted it back with a <tree> pole.",
                "Behind the door, $s found <many> eggs and laid them in a <box> of hay.",
                "The <trade> arrived in a <colour> cart to look at a <bigbeast>.",
                "$s led a <bigbeast> down the <road> on a <old> rope.",
                "The dog ran ahead, and the <beasts:b> moved <flow> towards the <spot>.",
            ),
            (
                "$n mended the fence near the <tree> tree with <old> wire and a <handtool>.",
                "$n moved the <beasts:b> to the field beyond the <spot> and closed the <colour> gate.",
                "Behind the barn, $n met $p <kin:k>, who was loading <crops> onto a cart.",
                "$n washed the <old> churn with hot water and stood it by the <spot>.",
                "With a <handtool> and <few> boards, $n patched the wall of the <old> shed.",
                "$n forked hay <while> and then rested against the <mason> wall.",
            ),
            (
                "<eve>, the <beasts:b> were in the barn, and $n hung the <old> lantern by the door.",
                "<eve>, $s poured milk for the barn cat and bolted the <old> gate.",
                "$s came in <dusk> with <many> eggs and a <box> of <crops>.",
                "<eve>, the <beasts:b> lay down in the straw, and the yard smelled of <smell>.",
                "$s washed at the pump <dusk> and carried a <vessel> of milk to the <room>.",
                "<eve>, a <beast> called once from the <spot>, and then the farm was quiet.",
            ),
        ),
    ),
    Scene(
        "harvest",
        True,
        "out",
        True,
        ("summer", "autumn"),
        (
            (
                "<when>, $n joined the <folk> who were picking <crops:crop> near <place:home>.",
                "The <crops:crop> were ripe <when>, and $n came to the field with a <old> <box>.",
                "<when>, $n spread empty sacks under a <tree> tree near the <crops:crop> at <place:home>.",
                "<when>, a cart took $m and <many> <folk> to the fields below <place:home>.",
                "$n began to bring in the <crops:crop> <when>, with the help of $p <kin:k>.",
                "<when>, $n sharpened a <blade> and went out to the field of <crops:crop> behind the <spot>.",
            ),
            (
                "The rows ran from the <spot> to the <stage>, and $s started at the near end.",
                "$s worked <how> beside the <trade>, who wore a <colour> cloth round the neck.",
                "Each <box> of <crops:crop> was carried to a <old> wagon by the <spot>.",
                "$s filled one <old> <box> after another <while>.",
                "The <folk> sang as the <crops:crop> were laid in the <old> crates.",
                "A <puller> pulled the wagon <flow>, and $s walked behind it with a <gartool>.",
            ),
            (
                "By ten o'clock <many> sacks stood in the shade of the <tree> tree.",
                "$s sorted the <crops:crop> <how> into <few> <old> baskets.",
                "When the wagon was full, the <trade> drove it down the <road> to the <building>.",
                "A wheel stuck near the <spot>, and <few> <folk> pushed the wagon <how>.",
                "The children gathered the smallest <crops:crop> in a <colour> cloth.",
                "$s tied the sacks with <colour> twine and stood them <how> beside the <spot>.",
            ),
            (
                "After a rest, $n went back to the rows with a <box> and a <blade>.",
                "$n passed the heavy <box> to the <trade>, who stacked it <how>.",
                "$n took off $p <colour> <garment>$z and worked on <while>.",
                "At the far end of the rows, $n found a <find> and a <old> boot in the grass.",
                "$n counted <many> full crates and wrote the number in a <pale> notebook.",
                "The last row was short, and $n finished it <how> with the <trade>.",
            ),
            (
                "<eve>, the <folk> sat on the <old> wagon and ate <food>.",
                "<eve>, the <crops:crop> were under cover, and $s swept the <room>.",
                "The wagon went down the <road> <dusk>, with $m and a <dog> behind it.",
                "<eve>, the farmer paid each of the <folk> and handed out <drink>.",
                "$s walked home <dusk> with a <box> of <crops:crop> on one shoulder.",
                "<eve>, only leaves and <birds> were left in the field by the <spot>.",
            ),
        ),
    ),
    Scene(
        "school",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n arrived at the school in <place:home> with a <box> of <pale> paper.",
                "The bell of the school at <place:home> rang <when>, and $n hung up $p <colour> <garment>$z.",
                "<when>, $n came to help with <lesson> at the little school by the <spot>.",
                "<when>, $n unlocked the classroom at <place:home> and lit the <old> stove.",
                "$n visited the school beside the <building> <when>, to give a lesson in <lesson>.",
                "<when>, $n brought a <pet> to the school in <place:home> for the children to draw.",
            ),
            (
                "The morning began with <lesson>, and after that came <lesson>.",
                "$s handed out <many> sheets of <pale> paper and a <box> of pencils.",
                "On the board there was a drawing of a <model>, done in <colour> chalk.",
                "The youngest children sat near the <surface> and practised <lesson> <how>.",
                "$s helped a boy with <lesson> and a girl with a <old> <model>.",
                "<many> children stood in <few> rows and sang to the sound of a <old> piano.",
            ),
            (
                "In the second hour the class built a <model> out of card, <cloth>, and <colour> string.",
                "At playtime the children ran to the <tree> tree and threw a <colour> ball.",
                "The teacher opened a <old> atlas and pointed to the <stage>.",
                "$s cut out <pattern> from <pale> paper and pinned them to the wall.",
                "One child had brought a <find>, and it was passed round the room <flow>.",
                "$s mixed <colour> paint in a <vessel> and washed <many> brushes.",
            ),
            (
                "$n read aloud <while> from a <colour> book about a journey by <craft>.",
                "After lunch $n took the class to the <spot> to sketch <birds>.",
                "$n collected the books <how> and stacked them on the <surface>.",
                "When the <model> was dry, $n hung it between two <colour> lamps.",
                "$n wiped the board with a <rag> cloth and wrote up the plan for <lesson> the next day.",
                "Some of the children finished early, and $n gave them <lesson> to do.",
            ),
            (
                "<eve>, the classroom was empty, and the <model> stood on the <surface>.",
                "The bell rang at three, and the children ran down the <road> past the <spot>.",
                "<eve>, $s closed the <old> cupboard and left a <find> on the <surface>.",
                "At home time each child took away a drawing of a <beast> on <pale> paper.",
                "<eve>, $s locked the <old> door and walked home by way of the <spot>.",
                "<eve>, the caretaker swept up scraps of <pale> paper and locked the <old> gate.",
            ),
        ),
    ),
    Scene(
        "letter",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n sat down at a <old> desk in <place:home> to write to $p <kin:k>.",
                "<when>, a letter in a <pale> envelope came to <place:home> for $m.",
                "$n found a <pale> envelope on the <surface> <when>, with a stamp from <place>.",
                "<when>, the <trade> handed $m a letter and a <old> <box> from <place>.",
                "<when>, $n took a pen and some <pale> paper into the <room>.",
                "$n waited by the gate <when>, until the postman came up the <road> with a <box>.",
            ),
            (
                "The letter began with <news> and went on to <news>.",
                "It came to <few> pages, in <ink> ink, and most of it was about <news>.",
                "$s read it <pace> by the window, next to a <vessel> of <flowers>.",
                "$s filled the pen, moved the <vessel> aside, and worked <while>.",
                "The first page was about <news>, with a small drawing of a <beast>.",
                "Between the sheets lay a pressed <tree> leaf and a <colour> ribbon.",
            ),
            (
                "Next came a few lines about <news> and a greeting to the <trade>.",
                "$s copied out a recipe for a <gooddish> with <flavour> and <flavour>.",
                "In the margin there was a sketch of the <spot> and a <old> <craft>.",
                "$s stopped to look out at the <stage>, then wrote <pace> about <news>.",
                "A drop of ink fell on the <cloth> cuff, and $s dabbed it <how>.",
                "$s put in a photograph of the <building> and a <pale> card with <pattern> on it.",
            ),
            (
                "$n folded the pages <how> and sealed them with <colour> wax.",
                "At the end $n sent good wishes from <place:home> and added a line on <news>.",
                "$n wrote the address in <ink> ink and weighed the letter on a <metal> scale.",
                "$n packed the answer in a <box> with <ware> and a jar of <jam>.",
                "Then $n read the last page to $p <kin>, who was shelling nuts in the <room>.",
                "$n put on $p <colour> <garment>$z and took the letter to the <building>.",
            ),
            (
                "<eve>, the letter dropped into the <colour> box outside the <building>.",
                "<eve>, $s placed the pages in a <old> tin on the <surface>.",
                "The van left for <place> <dusk>, with the letter in a <cloth> bag.",
                "<eve>, $s put away the pen and sat <pace> in the <room>.",
                "<eve>, $s bought a stamp with <pattern> on it and posted the letter near the <spot>.",
                "An answer came <few> days later, in a <pale> envelope tied with <cloth> tape.",
            ),
        ),
    ),
    Scene(
        "kitchen",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n lit the stove in the kitchen at <place:home> to make a <gooddish:dish>.",
                "<when>, $n tied on $p <colour> apron$z and looked for the <flavour>.",
                "$n began to prepare a <gooddish:dish> <when>, for a supper with $p <kin:k>.",
                "<when>, $n set a <old> pan on the stove and opened a <box> of <crops>.",
                "The kitchen at <place:home> was warm <when>, and $n took down a <metal> bowl.",
                "<when>, $n brought <crops> from the <room> and washed them in a <vessel>.",
            ),
            (
                "$s chopped the <crops> <how> and put them in a <colour> bowl with some <flavour>.",
                "First came the <flavour>, then the <flavour>, and last a spoon of <flavour>.",
                "$s stirred the pan <how>, and the room filled with a smell of <flavour>.",
                "The recipe was on a <pale> card, under a jar of <flavour>.",
                "$s weighed out the <flavour> on a <metal> scale and sifted it <how>.",
                "A pot of <crops> stood on the <surface>, next to a dish of <flavour>.",
            ),
            (
                "There was no <flavour> in the jar, so $s borrowed a <old> cup of it from the <trade>.",
                "$s kept the fire low <while> and added <flavour> from a <old> tin.",
                "$p <kin:k> peeled <many> <crops> and dropped them in a <vessel>.",
                "$s wiped the <surface> and laid out <few> <colour> plates.",
                "While the oven warmed, $s washed the <vessel> and polished the <metal> spoons.",
                "The lid rattled, and $s moved the pan <how> to the <old> back plate.",
            ),
            (
                "$n tasted a spoonful, added <flavour>, and waited <while>.",
                "On the <surface>, $n spread a <colour> cloth and put out a <vessel> of <flowers>.",
                "$n sliced some bread and filled a <metal> jug with <drink>.",
                "When the timer rang, $n lifted the dish out <how> with a <rag> cloth.",
                "$n sprinkled <flavour> on top and carried the dish to the <room>.",
                "The <trade> came in with <flowers>, and $n set one more <old> plate.",
            ),
            (
                "<eve>, <few> <folk> sat round the <old> table and passed the plates.",
                "<eve>, the plates were empty, and $p <kin:k> washed the <vessel>.",
                "Supper was served <dusk>, with <drink> and a bowl of <crops>.",
                "<eve>, $s dried the <metal> pans and hung the cloth in the <room>.",
                "What was left went into a <vessel> on the <surface> for the <trade>.",
                "<eve>, the stove was cool, and a smell of <flavour> stayed in the <room>.",
            ),
        ),
    ),
    Scene(
        "walk",
        True,
        "out",
        False,
        _ALL,
        (
            (
                "<when>, $n left <place:home> on foot and took the <road> towards the <stage>.",
                "<when>, $n laced $p boots and set out for <place> with a <old> stick.",
                "$n started up the hill behind <place:home> <when>, with <food> in a <box>.",
                "<when>, $n met <few> <folk> at the <spot> for a walk to the <stage>.",
                "<when>, $n followed a <old> sign from <place:home> to the <spot>.",
                "$n had <few> miles to walk <when>, from <place:home> to the <building> at <place>.",
            ),
            (
                "The path climbed past a <spot> and a row of <tree> trees.",
                "$s crossed a stream on <few> flat stones and held on to a <tree> branch.",
                "A <beast> followed along the <road> as far as the <spot>.",
                "At the first bend $s stopped to tie a lace and look at the <stage>.",
                "The <road> was muddy by the <spot>, so $s kept to the grass under the <tree> trees.",
                "$s walked <pace> and passed <few> <folk> with a <dog>.",
            ),
            (
                "Higher up there were <tree> trees, a <old> wall, and <beasts> in the heather.",
                "$s asked the <trade> about the way to the <spot>, and a <colour> gate was pointed out.",
                "From the ridge $s could see the <stage> and the roof of the <building>.",
                "$s sat on a <old> rock <while> and shook a stone from a boot.",
                "Near a hut of <plank> logs, <few> <birds> rose from the grass.",
                "When <rain> came over, $s put on $p <colour> <garment>$z and waited beneath a <tree> tree.",
            ),
            (
                "$n made a sketch of the <stage> in a <pale> notebook.",
                "On the way down $n met a farmer, who was leading a <bigbeast> to <place>.",
                "$n filled a bottle at a spring near the <spot> and drank <pace>.",
                "$n picked up a <find> from the <road> and put it in the <box>.",
                "After <few> miles $n turned left at the <spot> and went through a <colour> gate.",
                "The path ran beside the <stage>, and $n walked on <while>.",
            ),
            (
                "<eve>, $n came down to the <building> and pulled off $p boots.",
                "<eve>, a <colour> bus carried $o back along the <road> to <place:home>.",
                "$s saw the lights of the <building> <dusk> and walked the last mile <pace>.",
                "<eve>, $s rested by the <spot> and listened to <sound>.",
                "$s had walked <few> miles <eve2>, and a <pale> notebook was nearly full.",
                "<eve>, $s ate <food> at the <building> and spread the map on the <surface>.",
            ),
        ),
    ),
    Scene(
        "inn",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n came to an inn at <place:home> after a long journey past the <stage>.",
                "<when>, $n got down from a <colour> bus in <place:home> and looked for a room.",
                "The coach stopped at <place:home> <when>, and $n carried a <box> into the inn.",
                "<when>, $n arrived in <place:home>, a village of <many> houses by the <stage>.",
                "$n rode into <place:home> on a <old> bicycle <when>, with a <box> tied on behind.",
                "<when>, $n left the <box> at the inn and went out to see <place:home>.",
            ),
            (
                "The room had a <old> bed, a <colour> rug, and a window over the <spot>.",
                "The innkeeper wrote in a <colour> book and handed over a <old> key of <metal>.",
                "$s walked <pace> along the <road> to the <building> and back by the <spot>.",
                "On the wall hung a picture of a <craft> in a frame of <plank>.",
                "$s washed in a <metal> basin and put on $p clean <colour> <garment>$z.",
                "A <pet> slept on the <colour> rug beside the <old> stove.",
            ),
            (
                "In the <building> there were <old> cases of <ware> and a <thing> made of <stuff>.",
                "$s bought a card with <pattern> on it and a <box> of <ware>.",
                "The <trade> showed $o a short way to the <spot> through the <old> arch.",
                "$s spent an hour by the <stage> and watched a <craft> go by.",
                "In the square <few> <folk> played cards under a <tree> tree.",
                "$s rested on a bench near the <spot> and made notes in a <colour> book.",
            ),
            (
                "Back at the inn, $n found <flowers> in a <vessel> on the <surface>.",
                "$n listened <while> as the <trade> played a <old> fiddle.",
                "At the next table sat <few> <folk> from <place>, and $n joined the game.",
                "$n helped the innkeeper to carry a <old> <thing> up from the <room>.",
                "After a bath $n sat in the <room> with a <colour> blanket and a map.",
                "$n asked about buses to <place>, and the <trade> wrote the times on <pale> paper.",
            ),
            (
                "<eve>, the innkeeper served <food> and lit the lamp on the <surface>.",
                "<eve>, $s leaned at the window and looked out over the <spot>.",
                "$s went to bed <dusk>, under a <colour> quilt with <pattern> on it.",
                "<eve>, the <folk> said good night, and the <old> stove was banked up.",
                "$s paid for <few> nights <dusk> and hung the key by the <surface>.",
                "The next morning $s drank <drink>, thanked the innkeeper, and left for <place>.",
            ),
        ),
    ),
    Scene(
        "pottery",
        True,
        "in",
        True,
        _ALL,
        (
            (
                "<when>, $n took a lump of clay from a <box> and began to shape a <pot:v>.",
                "<when>, $n opened the pottery at <place:home> and lit the <old> kiln.",
                "An order for <many> pieces came to the pottery <when>, and $n mixed the clay.",
                "<when>, $n learned to throw a <pot:v> from the potter at <place:home>.",
                "$n sat down at the wheel <when>, in the <room> behind the <building>.",
                "<when>, $n carried <few> sacks of clay up the <road> to the pottery.",
            ),
            (
                "$s kneaded the clay <how> on a <old> board and wet both hands.",
                "The wheel turned, and the <pot:v> rose <flow> between $p fingers.",
                "$s trimmed the rim with a wire and smoothed it with a piece of <cloth>.",
                "The first <pot:v> leaned to one side, so $s began again <how>.",
                "On the shelf stood <many> <old> pots and a <pot> with a <colour> glaze.",
                "$s pressed a <tree> leaf into the side and drew <pattern> with a needle.",
            ),
            (
                "Then $s painted <colour> <pattern> round the edge of the <pot:v>.",
                "The <trade> looked in and ordered <few> dishes with <pattern> on them.",
                "$s dipped the <pot:v> in <colour> glaze and stood it on the <surface>.",
                "$p <kin:k> brought wood for the kiln in a <old> <box>.",
                "$s mixed <colour> and <colour> powder in a <vessel>.",
                "For the handle $s rolled a thin strip of <colour> clay and curved it <how>.",
            ),
            (
                "$n stacked the kiln <how>, with the <pot:v> on the lowest shelf.",
                "While the fire burned, $n cleaned the <old> wheel and swept the <room>.",
                "$n scratched a small mark under each <pot:v> and worked on <while>.",
                "A customer chose a <pot> with <pattern>, and $n wrapped it in <pale> paper.",
                "$n opened the kiln door a little and saw the <pot:v> glow <hot>.",
                "At the back of a shelf $n found a <pot> with <colour> <pattern>.",
            ),
            (
                "<eve>, the kiln was cooling, and $s washed the clay from $p hands.",
                "<eve>, <many> pieces stood in <old> rows on the <surface>.",
                "The new <pot:v> held <flowers> <dusk>, in the window of the <room>.",
                "<eve>, $s covered the rest of the clay with wet <rag> and put out the lamp.",
                "<eve>, $s packed <few> plates in straw for the <building> at <place>.",
                "$s took one <pot:v> home <dusk> and filled it with <crops>.",
            ),
        ),
    ),
    Scene(
        "house",
        True,
        "in",
        True,
        _WARM,
        (
            (
                "<when>, $n carried a ladder and a tin of <colour> paint to the house at <place:home>.",
                "<when>, $n moved into a <old> house by the <spot>, with <few> boxes and a <thing>.",
                "$n began to paint the <room> of the house in <place:home> <when>.",
                "<when>, $n climbed up to mend the roof above the <room>.",
                "<when>, $n unloaded a <thing> from a <colour> van with the help of the <trade>.",
                "The key to the house at <place:home> came <when>, and $n opened the <colour> door.",
            ),
            (
                "$s covered the floor of the <room> with <old> sheets and opened the windows.",
                "$s scraped the wall <how>, and flakes of <colour> paint fell on the floor.",
                "First the <thing> went to the <room>, and the boxes stayed by the <surface>.",
                "Behind the <old> panel $s found a <find> and a page of <colour> newspaper.",
                "$s swept the <room> <how> and washed the <mason> tiles.",
                "The <part> of the window was stiff, and $s freed it with a <handtool>.",
            ),
            (
                "$p <kin:k> held the ladder, and the <trade> passed up a <tool>.",
                "The walls of the <room> turned from <colour> to <colour> by midday.",
                "$s measured the <room> and sawed <few> boards of <plank> wood.",
                "$s put up a shelf of <plank> and set a <vessel> on it.",
                "A tin of <colour> paint tipped over, and $s mopped it up with a <rag> rag.",
                "$s laid <many> tiles <how> and tapped each one with a <handtool>.",
            ),
            (
                "$n hung <colour> curtains of <cloth> in the <room>.",
                "From the roof $n could see the <spot>, the <building>, and the <stage>.",
                "$n unpacked the <ware> and arranged them <how> on the <surface>.",
                "$n screwed a new <part> to the <old> door and oiled it.",
                "The <trade> brought <flowers>, and $n stood them in a <metal> bowl.",
                "$n rolled up the sheets and carried the <tool> down to the <room>.",
            ),
            (
                "<eve>, the paint was dry, and $s put the <old> lamp back in the <room>.",
                "<eve>, smoke rose from the chimney, and $s sat on a <box> with some <drink>.",
                "$s washed the brushes <dusk> and left them on the <surface> in a <vessel>.",
                "<eve>, $s ate <food> with the <trade> among the boxes.",
                "<eve>, $s looked round the <room> and straightened the <colour> rug.",
                "The <old> ladder was back in its place <dusk>, behind the <spot>.",
            ),
        ),
    ),
    Scene(
        "shore",
        True,
        "out",
        True,
        _ALL,
        (
            (
                "<when>, $n walked along the beach below <place:home> with a <old> <box>.",
                "<when>, $n went down to the shore to look for <shorefind:f>.",
                "The tide was out <when>, and $n crossed the sand at <place:home>.",
                "<when>, $n took the <road> over the dunes to the sea at <place:home>.",
                "$n spent a day by the sea <when>, with $p <kin:k> and a <dog>.",
                "<when>, $n carried <old> nets from the <building> to the beach.",
            ),
            (
                "Among the rocks there were pools with <shorefind> and <few> small crabs.",
                "$s gathered <shorefind> <how> and dropped them into the <box>.",
                "The waves had left a line of <shorefind> and a <colour> bottle.",
                "$s took off $p boots and walked <pace> through the shallow water.",
                "A <craft> lay on its side near the <mason> steps, painted <colour>.",
                "Two <folk> were raking up <shorefind> beside a <colour> cart.",
            ),
            (
                "$s built a wall of stones round a pool and floated a <find> in it.",
                "Far out, a <craft> with a <colour> sail went towards <place>.",
                "A crowd of <birds> took off when a <dog> ran into the water.",
                "$s dug in the sand <while> and found a <find>.",
                "The <trade> was mending nets with <colour> twine, and $s stayed to help.",
                "$s washed the <shorefind> in a pool and spread them on a <rag> cloth.",
            ),
            (
                "$n climbed to a <old> ledge above the beach and sat <while>.",
                "When the tide turned, $n moved the <box> higher up, near the <old> wall.",
                "$n skimmed <few> flat stones <how> and listened to <sound>.",
                "$n drew a <craft> in the sand with a <tree> stick.",
                "With a <cloth> bag full of <shorefind>, $n walked back along the <road>.",
                "$n made a fire of driftwood by the <mason> wall and warmed some <drink>.",
            ),
            (
                "<eve>, the sea came up to the <old> steps, and the beach was empty.",
                "<eve>, $s shook the sand from $p <garment>$z and went up to the <building>.",
                "The <shorefind> lay drying on the <surface> <dusk>, next to a <vessel>.",
                "<eve>, lights shone on a <craft> far out, and $s turned back to the <spot>.",
                "$s went home <dusk> with a <box> of <shorefind> and wet boots.",
                "<eve>, the <trade> pulled a <colour> <craft> up the sand and covered it.",
            ),
        ),
    ),
    Scene(
        "river",
        False,
        "out",
        True,
        _ALL,
        (
            (
                "<when>, the river at <place:home> was <fair_water> beneath the <mason> bridge.",
                "<when>, a <colour> <craft> lay on the river below <place:home>.",
                "The river passed <place:home> <flow> <when>, between rows of <tree> trees.",
                "<when>, the water stood <few> inches below the <road> at <place:home>.",
                "Along the river at <place:home>, the <folk> were out <when>.",
                "<when>, <birds> gathered on the bank near the <building>.",
            ),
            (
                "On one side stood the <building>, and on the other a field of <beasts>.",
                "The <trade> sat on the bank with a rod and a <old> <box>.",
                "Under the bridge the water was <fair_water>, with a <colour> glint.",
                "A <craft:c2> went by <flow>, loaded with <crops> and <ware>.",
                "Leaves from a <tree> tree turned on the water near the <spot>.",
                "Some <folk> washed <cloth> sheets at the <mason> steps.",
            ),
            (
                "At the lock the keeper turned a <old> wheel, and a <craft:c3> sank <flow> with the water.",
                "A <beast> came down to drink beside a <old> post.",
                "Where the river widened, <many> <birds> rested on a bank of gravel.",
                "The children from the school floated a <colour> <model> past the <spot>.",
                "Farther down, <few> <birds> swam past the <mill> wheel of the mill.",
                "A <find> glittered in the shallows, close to a <mason> post.",
            ),
            (
                "By noon the <folk> had spread <food> on a <colour> cloth under the <tree> tree.",
                "The <trade> tied up a <craft:c4> and carried <few> sacks to the <building>.",
                "Then came <rain>, and rings spread across the <fair_water> water.",
                "A <old> cart crossed the bridge with <ware> for <place>.",
                "Below the weir the water was white, and <birds> stood in the tall reeds.",
                "The keeper painted the lock gates <colour> and hung up a <old> lamp.",
            ),
            (
                "<eve>, the river was <colour> and still, and the <craft> was moored.",
                "<eve>, mist lay on the water between the <building> and the <spot>.",
                "The boats were tied up <dusk>, and a lamp shone in the <building>.",
                "<eve>, <few> <birds> flew low over the water to the <tree> trees.",
                "The bridge was empty <dusk>, and the water ran <flow> towards <place>.",
                "<eve>, the <trade> packed up the rods and went home with <few> fish.",
            ),
        ),
    ),
    Scene(
        "square",
        False,
        "out",
        True,
        _ALL,
        (
            (
                "<when>, the square at <place:home> was full of <folk>.",
                "<when>, the shutters of the <building> at <place:home> were opened one by one.",
                "<place:home> woke <flow> <when>, with <sound> at the end of the <road>.",
                "<when>, <few> carts of <crops> rolled into <place:home>.",
                "The village of <place:home> made ready for a fair <when>.",
                "<when>, a brass band from <place> came up the <road> to <place:home>.",
            ),
            (
                "The <trade> put a <old> table outside and covered it with <ware>.",
                "Chains of <colour> flags hung between the <building> and a <tree> tree.",
                "Some <folk> filled buckets at the fountain and talked about <news>.",
                "The <trade> swept the steps <how>, and <birds> hopped after the broom.",
                "A <colour> bus from <place> brought <many> <folk> to the fair.",
                "Beside the <building> a <bigbeast> was tied to a <mason> ring.",
            ),
            (
                "At ten the <trade> wheeled out a <thing> with <colour> <pattern> on it.",
                "The <folk> set out <old> chairs in rows and tried them <how>.",
                "A boy sold <drink> from a <metal> jug, and a girl sold <flowers>.",
                "The clock above the <building> had stopped, and the <trade> climbed up with a <handtool>.",
                "In one corner <few> <folk> played skittles with <old> pins.",
                "The <trade> and the <kin> of the mayor hung lanterns in the <tree> tree.",
            ),
            (
                "Around noon the <folk> ate <food> at a long table and drank jug after jug of <drink>.",
                "Then the band played <while_plain>, and the <folk> danced by the <spot>.",
                "A prize of <ware> went to the owner of a <bigbeast>.",
                "A wind from the <stage> blew a <colour> <garment> into the fountain.",
                "The children raced from the <spot> to the <building>, each with a <colour> sash.",
                "When <rain> came over, the <folk> carried the <ware> into the <building>.",
            ),
            (
                "<eve>, the carts left, and the <trade> folded the <colour> flags.",
                "<eve>, the square was swept, and a <find> was handed in at the <building>.",
                "The lamps in the <tree> tree shone <dusk>, and the <folk> sat beneath them.",
                "<eve>, the chairs went back to the <building> on a <old> cart.",
                "<eve>, the fountain ran <flow>, and a <beast> drank from it.",
                "The last bus went to <place> <dusk>, with <many> <folk> and a box of <ware>.",
            ),
        ),
    ),
)
